# SPDX-License-Identifier: Apache-2.0
"""Captions, prompts and networks of text at the command line: what does not fit is one line."""

from pathlib import Path

import pytest
from PIL import Image

from scm_lightning.cli import main

CONFIG = Path(__file__).parents[2] / "configs" / "emoji32_words_teacher.yaml"

NETWORK = "model.init_args.network.init_args"
SMALL = {"patch_size": 4, "model_channels": 16, "num_blocks": 1, "num_heads": 2}
CAPTIONS = ["--captions=captions.csv", "--text_encoder=words"]


def caption_table(folder, numbers):
    rows = [f"{n}.png,{'red' if n % 2 else 'blue'} number {n}" for n in numbers]
    (folder / "captions.csv").write_text("\n".join(["file,caption", *rows]))


def prepare(*options):
    fixed = ["--source=pictures", "--size=8", "--heldout=4", "--workers=0"]
    main(["prepare", *fixed, "--out=shards", *options])


def run(stage, *options, text_channels=64):
    """A tiny teacher by words, of two steps."""
    network = {"data_shape": "[3,8,8]", **SMALL, "text_channels": text_channels}
    options = [
        *(f"--{NETWORK}.{key}={value}" for key, value in network.items()),
        *(f"--data.init_args.num_{each}_samples=2" for each in ("val", "test")),
        *("--data.init_args.root=shards", "--data.init_args.batch_size=4"),
        *("--trainer.max_steps=2", "--trainer.val_check_interval=2"),
        *("--trainer.default_root_dir=run", "--model.init_args.sampling.num_steps=2"),
        *options,
    ]
    main([stage, f"--config={CONFIG}", *options])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with twelve pictures and their captions, to be in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for n in range(12):
        Image.new("RGB", (8, 8), (20 * n, 3 * n, 7 * n)).save(tmp_path / "pictures" / f"{n}.png")
    caption_table(tmp_path, range(12))
    return tmp_path


def refused(capsys, command):
    """The one line with which the command is refused."""
    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 2
    error = [x for x in capsys.readouterr().err.splitlines() if x.startswith("scm: error: ")]
    assert len(error) == 1
    return error[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text_encoder=words"], "text_encoder and text_length go with captions"),
        (["--captions=captions.csv"], "captions need a text_encoder, got none"),
        (["--captions=captions.csv", "--text_encoder=pictures"], "there is no config.json"),
        (["--captions=nowhere.csv", "--text_encoder=words"], "nowhere.csv"),
        ([*CAPTIONS, "--text_length=0"], "a length of at least 1, got 64 and 0"),
        ([*CAPTIONS, "--frames=2"], "captions go with images in a folder"),
    ],
)
def test_captions_that_do_not_fit_are_refused(options, message, here, capsys):
    """Before anything is written."""
    if "--frames=2" in options:
        (here / "pictures" / "clip").mkdir()
        for n in range(12):
            (here / "pictures" / f"{n}.png").rename(here / "pictures" / "clip" / f"{n}.png")
    assert message in refused(capsys, lambda: prepare(*options))
    assert not (here / "shards").exists()


def test_images_without_captions_and_captions_without_images_are_refused(here, capsys):
    caption_table(here, range(10))
    line = refused(capsys, lambda: prepare(*CAPTIONS))
    assert "has no caption for images: 2, first 10.png" in line
    caption_table(here, range(13))
    assert "that are not there: 1, first 12.png" in refused(capsys, lambda: prepare(*CAPTIONS))


def test_a_run_by_words_is_trained_scored_and_draws_prompts(here, capsys):
    """And refuses prompts without words, another encoder, and other widths than the data's."""
    prepare(*CAPTIONS)
    run("fit")
    run("test")
    assert '"word_match/teacher"' in (here / "run" / "metrics.json").read_text()
    (here / "prompts.txt").write_text("red number\n\nblue number 3\n")
    capsys.readouterr()
    run("predict", "--prompts=prompts.txt")
    assert [*(here / "run").glob("**/*.png")]
    (here / "prompts.txt").write_text("red number\n!!!\n")
    line = refused(capsys, lambda: run("predict", "--prompts=prompts.txt"))
    assert "every prompt must have words in it, got '!!!' in line 2" in line
    (here / "prompts.txt").write_text("\n")
    line = refused(capsys, lambda: run("predict", "--prompts=prompts.txt"))
    assert "must have a prompt in each line, got none" in line
    (here / "prompts.txt").write_text("red\n")
    other = ["--prompts=prompts.txt", "--data.init_args.text_encoder=pictures"]
    line = refused(capsys, lambda: run("predict", *other))
    assert "there is no config.json" in line


@pytest.mark.parametrize(
    ("captions", "text_channels", "message"),
    [
        (CAPTIONS, 0, "data have the condition text"),
        ([], 64, "takes the condition text, but the data have none"),
        (CAPTIONS, 32, "64"),
    ],
)
def test_networks_that_do_not_fit_the_data_are_refused(
    captions, text_channels, message, here, capsys
):
    """Before the first step: data with text and a network without, the reverse, another width."""
    prepare(*captions)
    capsys.readouterr()
    plain = ["--model.init_args.condition_dropout=0", "--model.init_args.sampling.guidance=null"]
    options = [] if text_channels else plain
    line = refused(capsys, lambda: run("fit", *options, text_channels=text_channels))
    assert message in line
    assert not (here / "run" / "checkpoints").exists()
