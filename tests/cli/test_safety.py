# SPDX-License-Identifier: Apache-2.0
"""No file that is read runs code, and nothing of the environment is written down.

Every malicious file would make the canary if it were unpickled, which is tried first.
"""

import base64
import contextlib
import io
import json
import pickle
import shutil
import tarfile
import urllib.parse

import malformed_place
import numpy as np
import pytest
import torch

from scm_lightning.cli import main
from scm_lightning.data import Reading, Shards
from scm_lightning.metrics import InceptionFeatures
from scm_lightning.storage import archive


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return open, (self.canary, "w")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, a diffusion run and their data."""
    folder = tmp_path_factory.mktemp("made")
    malformed_place.make(folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of them, and no canary at the end."""
    shutil.copytree(made, tmp_path / "place")
    content = (made / "base.yaml").read_text().replace(str(made), str(tmp_path / "place"))
    (tmp_path / "place" / "base.yaml").write_text(content)
    (tmp_path / "place" / "ema").mkdir()
    yield tmp_path / "place"
    assert not list(tmp_path.rglob("canary*"))


def last(folder, run="run"):
    return folder / run / "checkpoints" / "last.ckpt"


def write_malicious(file, kind, payload, monkeypatch):
    """A checkpoint with the payload among its weights, in one of the formats that were usual."""
    content = torch.load(file, weights_only=True)
    content["state_dict"]["payload"] = payload
    if kind == "pickle":
        file.write_bytes(pickle.dumps({"state_dict": payload}))
    elif kind == "checked":
        with monkeypatch.context() as patch:  # nobody else would be so kind as to check it
            patch.setattr(archive, "_check_loadable", lambda beside, file: None)
            archive.write_archive(content, file)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")


KINDS = ("zip", "legacy", "pickle", "checked")


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_would_make_the_canary(kind, made, tmp_path, monkeypatch):
    """Unpickled, they do: a canary that nobody makes has not been tested."""
    file = shutil.copy(last(made), tmp_path / "x.ckpt")
    write_malicious(file, kind, Payload(tmp_path / "canary"), monkeypatch)
    pickle.loads(file.read_bytes()) if kind == "pickle" else torch.load(file, weights_only=False)
    assert (tmp_path / "canary").exists()


def commands(folder, file):
    """Every command that reads a checkpoint."""
    config, out = ["--config", str(folder / "base.yaml")], ["--out", str(folder / "new.ckpt")]
    given = ["--ckpt_path", str(file)]
    root = ["--trainer.default_root_dir", str(folder / "run")]
    width = ["--sigma_rel", "0.1"]
    return {
        "fit": ["fit", *config, *given],
        "fit by itself": ["fit", *config, *root, "--trainer.max_steps", "2"],
        **{stage: [stage, *config, *given] for stage in ("validate", "test", "predict")},
        "teacher": ["fit", *config, "--model.init_args.teacher", str(file)],
        "reconstruct": ["reconstruct", "--run", str(folder / "run"), *width, *out],
        "export": ["export", "--checkpoint", str(file), "--out", str(folder / "x.safetensors")],
    }


def refused(words, capsys):
    with malformed_place.stopped(), pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_no_checkpoint_is_unpickled(kind, folder, monkeypatch, capsys):
    """Given, found in the folder of the run, as a teacher, to be exported."""
    (folder / "run" / "checkpoints" / "0000001.ckpt").unlink(missing_ok=True)
    write_malicious(last(folder), kind, Payload(folder / "canary"), monkeypatch)
    for words in commands(folder, last(folder)).values():
        refused(words, capsys)


@pytest.mark.parametrize("name", ["payload.ckpt", "payload.safetensors"])
def test_no_snapshot_export_or_weights_are_unpickled(name, folder, capsys):
    """Files that should be in other formats, or of tensors alone."""
    file = folder / name
    torch.save(Payload(folder / "canary"), file)
    shutil.copy(file, folder / "ema" / "0000001-0.05.safetensors")
    shutil.copytree(folder / "ema", folder / "run" / "ema")
    for words in commands(folder, file).values():
        if words[:2] != ["fit", "--config"] or "--trainer.max_steps" not in words:
            refused(words, capsys)
    with pytest.raises(ValueError, match=r"must be a file of weights|torch-fidelity"):
        InceptionFeatures(str(file))


def test_hyperparameters_name_nothing_that_is_called(folder, monkeypatch, capsys):
    """Lightning once called what `_instantiator` names: CVE-2026-58659."""
    canary = folder / "canary"
    (folder / "evil.py").write_text(f"def make(*a, **k):\n    open({str(canary)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(folder))
    content = torch.load(last(folder), weights_only=True)
    content["hyper_parameters"] = {"_instantiator": "evil.make", "_class_path": "evil.make"}
    content["hparams_name"] = "kwargs"
    content["datamodule_hyper_parameters"] = content["hyper_parameters"]
    torch.save(content, last(folder))
    ends = {}
    for name, words in commands(folder, last(folder)).items():
        with malformed_place.stopped():
            ends[name] = _end_of(words)
    capsys.readouterr()
    # All else is as it should be, so that what can be done is done.
    assert ends["predict"] == ends["fit by itself"] == "trained"
    assert ends["export"] == "done"


def test_no_member_of_a_shard_is_unpickled_or_written_elsewhere(folder):
    """webdataset's own decoder unpickles .pyd, .pkl and .pth; members may be named ../x."""
    file = next((folder / "shards").glob("train-000000.tar"))
    buffer, payload = io.BytesIO(), Payload(folder / "canary")
    np.save(buffer, np.array([payload], object), allow_pickle=True)
    pickled = pickle.dumps(payload)
    contents = {"x.npy": buffer.getvalue(), "cls": b"1"}
    contents |= dict.fromkeys(("y.pyd", "meta.pkl", "w.pth", "pickle"), pickled)
    with tarfile.open(file) as archive:
        whole = {member.name: archive.extractfile(member).read() for member in archive}
    added = {
        f"{path}.{name}": content
        for path in ("99", f"{folder}/canary", "../canary")
        for name, content in contents.items()
    }
    with tarfile.open(file, "w") as archive:
        for name, content in {**added, **whole}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    index = folder / "shards" / "shards.json"
    size = file.stat().st_size
    index.write_text(
        index.read_text().replace(f'"num_bytes": {_listed(index)}', f'"num_bytes": {size}', 1)
    )
    for mapped in (True, False):
        data = Shards(0.7, str(folder / "shards"), 5, reading=Reading(mapped))
        data.setup("fit")
        for batches in (data.train_dataloader, data.reference_batches):
            with contextlib.suppress(ValueError):  # a link or device among the members
                assert len(list(batches())) > 0


def _listed(index):
    return json.loads(index.read_text())["splits"]["train"]["shards"][0]["num_bytes"]


def test_nothing_of_the_environment_is_written_down(tmp_path, monkeypatch, capsys):
    """Not by a training, nor by errors; plain, in base64 or as part of an address."""
    secret = "canary/hunter+2?"
    monkeypatch.setenv("SCM_CANARY_TOKEN", secret)
    monkeypatch.setenv("WANDB_API_KEY", secret)
    malformed_place.make(tmp_path)
    config = str(tmp_path / "base.yaml")
    for option in (
        "trainer.max_steps=x",
        "seed_everything=${oc.env:WANDB_API_KEY}",
        "trainer.default_root_dir=$WANDB_API_KEY",
        "nonsense=1",
    ):
        assert _end_of(["fit", "--config", config, f"--{option}"]) == 2
    assert _end_of(["fit", "--config", config]) == "done"
    said = capsys.readouterr()
    written = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert any(file.name == "config.yaml" for file in written)
    for form in (
        secret.encode(),
        base64.b64encode(secret.encode()).rstrip(b"="),
        urllib.parse.quote(secret, safe="").encode(),
    ):
        assert form not in (said.out + said.err).encode()
        assert not [file for file, content in written.items() if form in content]


def _end_of(words):
    try:
        main(words)
    except SystemExit as done:
        return done.code
    except malformed_place.Trained:
        return "trained"
    return "done"
