# SPDX-License-Identifier: Apache-2.0
"""`scm sample` and exports of a run's folder: the run's own samples; one line for mistakes."""

import numpy as np
import pytest
from digits_runs import fit
from PIL import Image

import scm_lightning
from scm_lightning.cli import main
from scm_lightning.export.sampler import SHIPPED
from scm_lightning.storage import Export


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A teacher of the digits of five steps, its samples by `scm predict`, and its export."""
    folder = tmp_path_factory.mktemp("sample") / "run"
    fit(folder, 5)
    options = ["--data.init_args.num_predict_samples=13", "--model.init_args.sampling.num_steps=3"]
    main(["predict", f"--config={folder}/config.yaml", *options])
    main(["export", f"--checkpoint={folder}", f"--out={folder}/network.safetensors"])
    return folder


def refused(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        main(["sample", *map(str, words)])
    assert caught.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("scm: error: ")
    assert line.count("\n") == 1
    return line


def test_an_export_draws_what_the_run_predicts(run):
    predicted = np.load(run / "samples" / "samples.npz")["teacher"]
    sampler = scm_lightning.load(run / "network.safetensors")
    assert np.array_equal(sampler.sample_arrays(n=13, steps=3), predicted)
    assert sampler.facts.sampling.num_steps == 16  # of the run
    assert sampler.facts.training["step"] == 5
    assert sampler.facts.training["images"] == 5 * 37
    assert sampler.facts.data.class_names == [str(digit) for digit in range(10)]
    assert "scikit-learn" in sampler.facts.training["data"]


def test_the_lines_after_an_export_run(run, tmp_path, capsys):
    """The Python line, and the next command."""
    out = tmp_path / "a.safetensors"
    main(["export", f"--checkpoint={run}", f"--out={out}"])
    said = capsys.readouterr().out
    line = next(each for each in said.splitlines() if each.startswith("in Python: "))
    code = line.removeprefix("in Python: ").removesuffix(" makes pictures")
    assert len(eval(code, {"scm_lightning": scm_lightning})) == 20
    assert f"sample --checkpoint {out} --out {tmp_path}/a.png" in said
    main(["sample", "--checkpoint", str(out), "--out", f"{tmp_path}/a.png", "--steps=2"])
    assert Image.open(tmp_path / "a.png").size == (500, 100)


def test_a_run_is_sampled_without_an_export(run, tmp_path, capsys):
    pictures = []
    for place in (run, run / "checkpoints" / "last.ckpt", run / "network.safetensors"):
        out = tmp_path / "a.png"
        main(["sample", f"--checkpoint={place}", f"--out={out}", "--steps=2", "--overwrite"])
        pictures.append(out.read_bytes())
    assert len({*pictures}) == 1


def test_a_checkpoint_elsewhere_is_told_of_its_run(run, tmp_path, capsys):
    moved, out = tmp_path / "x.ckpt", tmp_path / "a.safetensors"
    moved.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    main(["export", f"--checkpoint={moved}", f"--out={out}"])
    assert "name the configuration with --config" in capsys.readouterr().out
    assert "network" not in Export.read(out).entries
    line = refused(capsys, "--checkpoint", out, "--out", tmp_path / "a.png")
    assert "does not say which network it is of; export it from its run's folder" in line
    given = f"--config={run}/config.yaml"
    main(["export", f"--checkpoint={moved}", f"--out={out}", given, "--overwrite"])
    assert scm_lightning.load(out).sample_arrays(n=2, steps=2).shape == (2, 1, 8, 8)


def test_classes_are_columns(tmp_path):
    """Of the shipped student: every picture is recognised by what it should be."""
    out = tmp_path / "a.png"
    main(["sample", "--classes=3,7", "--n=16", "--steps=2", "--seed=3", f"--out={out}"])
    page = np.asarray(Image.open(out).convert("L"))
    drawn = scm_lightning.load().sample(["3", "7"], 16, steps=2, seed=3)
    cells = page.reshape(4, 50, 4, 50).swapaxes(1, 2)[:, :, :48:6, :48:6].reshape(16, 8, 8)
    assert np.array_equal(cells, np.stack([np.asarray(each) for each in drawn]))


MISTAKES = {
    "--classes 12": "there is no class 12; the 10 classes are 0, 1,",
    "--classes ,": "classes must be names or numbers, got none",
    "--n 0": "must be at least 1, got n 0",
    "--steps 3": "steps must be 1 or 2, the numbers that this network has times for, got 3",
    "--steps 0": "steps must be at least 1, got 0",
    "--guidance 2": "guidance needs a network that takes a scale, got 2",
    "--prompt hello": "draws by no text, got 'hello'",
    "--seed -1": "seed must be at least 0",
    "--device gpu": "device must be cpu, or cuda where there is a GPU, got gpu",
    "--out a.jpg": "out must be a file FILE.png, or FILE.gif, got a.jpg",
    "--out {d}/a.gif": "these samples do not move; give FILE.png",
    "--out {d}/there.png": "there.png is there already; give another name, or --overwrite",
    "--checkpoint {d}/cut.safetensor": "did you mean {d}/cut.safetensors?",
    "--checkpoint {d}/cut.safetensors": "cut.safetensors is not a safetensors file, or is damaged",
    "--checkpoint {d}/lfs.safetensors": "got a Git LFS pointer, which only names the file",
    "--checkpoint {d}/page.safetensors": "got an HTML page; download the file itself",
    "--checkpoint {d}": "there is no checkpoint {d}",
    "--config run.yaml": "did you mean: scm predict --config run.yaml",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "there.png").write_text("precious")
    (folder / "cut.safetensors").write_bytes(SHIPPED.read_bytes()[:-9])
    (folder / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (folder / "page.safetensors").write_text("<html>404</html>")
    return folder


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line(words, place, capsys):
    given = words.format(d=place).split()
    given = given if "--out" in given else [*given, "--out", str(place / "new.png")]
    if given[0] == "--config":
        given = given[:2]
    before = {*place.iterdir()}
    assert MISTAKES[words].format(d=place) in refused(capsys, *given)
    assert {*place.iterdir()} == before
    assert (place / "there.png").read_text() == "precious"
