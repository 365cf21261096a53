# SPDX-License-Identifier: Apache-2.0
"""The last lines of every command run as they are printed, whatever its paths are called."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from digits_runs import CONFIG, fit
from PIL import Image

from scm_lightning.cli import main
from scm_lightning.cli.next_steps import training_on
from scm_lightning.data.index import Shard, ShardIndex, Split
from scm_lightning.metrics import fidelity

PROGRAM = [sys.executable, "-m", "scm_lightning"]
STEPS = ["--trainer.max_steps=1", "--trainer.val_check_interval=1"]
FEW = [f"--data.init_args.num_{stage}_samples=4" for stage in ("val", "test", "predict")]
RUN, DATA = "runs/[exp]_lr1", "my data/[/x]"


def next_lines(capsys):
    """What to type next, without the name of the program; and all that was printed."""
    out = capsys.readouterr().out
    lines = out.partition("next: ")[2].splitlines()
    words = [shlex.split(line) for line in lines]
    assert all(each[:3] == PROGRAM for each in words), out
    return [each[3:] for each in words], out


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the digits, to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_run_to_its_scores_and_pictures_by_copying_lines(here, capsys, monkeypatch):
    """Of a small network that no student's configuration has; without torch-fidelity."""
    monkeypatch.setattr(fidelity, "is_installed", lambda: False)
    fit(Path(RUN), 5, shards=DATA, trainer__enable_progress_bar="true")
    lines, out = next_lines(capsys)
    assert [each[0] for each in lines] == ["test", "predict"]
    assert f"{RUN} holds checkpoints/last.ckpt, metrics.csv, samples, config.yaml\n" in out
    for words in lines:
        main([*words, *FEW])
        is_test = words[0] == "test"
        (words,), out = next_lines(capsys)
        assert RUN in out
        assert ('".[fid]")' in out) == is_test
    main(words)
    assert (here / RUN / "network.safetensors").is_file()


def test_a_finished_run_says_the_same_again(here, capsys):
    fit(Path(RUN), 5, shards=DATA)
    first, _ = next_lines(capsys)
    fit(Path(RUN), 5, shards=DATA)
    again, out = next_lines(capsys)
    assert again == first
    assert "already at step 5 of 5" in out


def test_a_teacher_is_distilled_by_copying_lines(here, capsys):
    """From the run itself, from its pictures and from its export."""
    root = f"--data.init_args.root={DATA}"
    main(["fit", f"--config={CONFIG}", *STEPS, *FEW, root, f"--trainer.default_root_dir={RUN}"])
    (_, predict, student), _ = next_lines(capsys)
    assert student[2].endswith("digits_scd.yaml")
    main([*predict, *FEW])
    (of_pictures,), _ = next_lines(capsys)
    assert of_pictures == student
    main(["export", f"--checkpoint={RUN}/checkpoints/last.ckpt", f"--out={RUN}/a.safetensors"])
    (of_export, of_picture), out = next_lines(capsys)
    assert of_picture[:3] == ["sample", "--checkpoint", f"{RUN}/a.safetensors"]
    of_run = {f"{RUN}/checkpoints/last.ckpt": f"{RUN}/a.safetensors"}
    assert of_export == [of_run.get(word, word) for word in student]
    main([*of_export, *STEPS, *FEW, "--model.init_args.objective.init_args.warmup.steps=1"])
    lines, out = next_lines(capsys)
    assert [each[0] for each in lines] == ["test", "predict"]
    assert f"{RUN}_scd holds" in out
    assert (here / DATA).is_dir()


def test_what_was_measured_is_trained_by_copying_a_line(here, capsys):
    """With all options of the run, and none of the bench."""
    options = ["--trainer.default_root_dir", RUN, "--dry_run=true", "--json", "a.json"]
    main(["bench", "--config", str(CONFIG), *options, "--gpu.tflops", "7", "--trainer.max_steps=1"])
    (words,), _ = next_lines(capsys)
    kept = ["--trainer.default_root_dir", RUN, "--trainer.max_steps=1"]
    assert words == ["fit", "--config", str(CONFIG), *kept]


@pytest.mark.parametrize("is_labelled", [True, False])
def test_from_pictures_to_a_run_by_copying_a_line(is_labelled, here, capsys):
    for number in range(12):
        folder = here / "pictures" / str(number % 2) if is_labelled else here / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 3 * number, 7 * number)).save(
            folder / f"{number}.png"
        )
    options = ["--size=8", "--heldout=4", "--workers=0"]
    main(["prepare", "--source=pictures", f"--out={DATA}", *options])
    (words,), out = next_lines(capsys)
    assert f"{DATA}/contact_sheet.png" in out
    main([*words, *STEPS, *FEW])
    lines, out = next_lines(capsys)
    predict, student = lines
    assert "runs/my data_[_x]_teacher holds" in out
    main([*predict, *FEW])
    main([*student, *STEPS, *FEW])
    assert "runs/my data_[_x]_scd holds" in capsys.readouterr().out


def test_from_captions_to_scores_and_a_student_by_copying_a_line(here, capsys):
    """Of another size and width of text than those of the configuration."""
    rows = ["file,caption"]
    (here / "pictures").mkdir()
    for number in range(12):
        image = Image.new("RGB", (8, 8), (20 * number, 3 * number, 7 * number))
        image.save(here / "pictures" / f"{number}.png")
        rows.append(f"{number}.png,gray number {number}")
    (here / "captions.csv").write_text("\n".join(rows))
    options = ["--captions=captions.csv", "--text_encoder=words", "--size=8", "--heldout=4"]
    main(["prepare", "--source=pictures", f"--out={DATA}", "--workers=0", *options])
    (words,), _ = next_lines(capsys)
    assert words[2].endswith("emoji32_words_teacher.yaml")
    main([*words, *STEPS, *FEW])
    (test, predict, student), _ = next_lines(capsys)
    main([*test, *FEW])
    out = capsys.readouterr().out
    assert "words of the nearest image in pixels averaged to 16x16" in " ".join(out.split())
    file = here / "runs" / "my data_[_x]_teacher" / "metrics.json"
    content = json.loads(file.read_text())
    for row in ("floor", "teacher", "denoiser"):
        assert content[f"word_match/{row}"] == {"value": 1.0, "num_samples": 4, "seed": 0}
        assert f"rare_word_match/{row}" not in content  # numbers of held-out images are all new
    (here / "prompts.txt").write_text("gray\nnumber 3\n")
    main([*predict, "--prompts=prompts.txt"])
    assert "runs/my data_[_x]_teacher" in capsys.readouterr().out
    main([*student, *STEPS, *FEW])
    lines, _ = next_lines(capsys)
    assert [each[0] for each in lines] == ["test", "predict"]


def index(shape, num_classes):
    ones = [1.0] * shape[0]
    splits = {name: Split([Shard(f"{name}.tar", 50_000, 1, "")]) for name in ("train", "heldout")}
    return ShardIndex(splits, shape, "uint8", num_classes, [], ones, ones, 255.0, "")


@pytest.mark.parametrize("num_gpus", [0, 1, 8])
@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 16, 16), (3, 30, 30), (3, 48, 48), (3, 64, 64), (4, 8, 8)]
)
def test_every_set_of_images_has_a_configuration_that_its_network_fits(
    shape, num_gpus, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    words = shlex.split(training_on("my data/x y", index(shape, 3)))[3:]
    with pytest.raises(SystemExit) as caught:
        main([*words, "--print_config"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "root: my data/x y\n" in out
    assert "num_classes: 3\n" in out
    assert f"data_shape:\n{''.join(f'        - {n}{chr(10)}' for n in shape)}" in out
    assert ("accelerator: cpu" in out) == (num_gpus == 0)


def test_a_set_that_a_configuration_is_written_for_has_that_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    line = training_on("data/cifar10/shards", index((3, 32, 32), 10))
    assert line.endswith("configs/cifar10_teacher.yaml")


def test_without_a_configuration_that_fits_it_is_said_what_to_set():
    line = training_on("photos", index((3, 512, 512), 7))
    assert "no configuration here is for data of shape (3, 512, 512)" in line
    assert "data_shape: [3, 512, 512] and num_classes: 7, and root: photos" in line
    assert json.loads(line.partition("data_shape: ")[2].partition(" and")[0]) == [3, 512, 512]
