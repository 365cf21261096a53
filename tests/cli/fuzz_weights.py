# SPDX-License-Identifier: Apache-2.0
"""Kinds of files with weights, and how the package reads them: checkpoints, exports, snapshots."""

import hashlib
import io
import pickle
import tempfile
from functools import cache
from pathlib import Path

import torch
from fuzz_engine import Kind
from fuzz_mutations import either, mutate_bytes, mutate_safetensors, mutate_zip
from gaussian import PATH
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from scm_lightning.cli.export import export
from scm_lightning.cli.reconstruct import reconstruct
from scm_lightning.metrics.fidelity import read_weights
from scm_lightning.metrics.frechet import Statistics
from scm_lightning.metrics.reference import KeptFeatures, _checksum, read_kept, write_kept
from scm_lightning.networks import MLP
from scm_lightning.storage import Checkpoint, Export, History, SavedRun, Snapshot, archive
from scm_lightning.storage.export import content_sha256
from scm_lightning.teachers import load_teacher

END = archive.END_SIZE + archive.COMMENT_SIZE
SIGMA_RELS = (0.05, 0.1)


class Payload:
    """Makes a file when it is unpickled, which an audit hook would see."""

    def __reduce__(self):
        return open, ("/tmp/canary", "w")


@cache
def network() -> nn.Module:
    """Of the weights in all files."""
    torch.manual_seed(0)
    return MLP((3,), 4, 1, emb_channels=4)


def checkpoint() -> dict:
    """What a diffusion run would save."""
    weights = {f"ema.network.{name}": x for name, x in network().state_dict().items()}
    weights |= {f"network.{name}": x for name, x in network().state_dict().items()}
    metadata = {"module": "diffusion", "sigma_data": PATH.sigma_data, "averages": ["0.05"]}
    return {
        "scm_lightning": {**metadata, "trained": "network"},
        "state_dict": {**weights, "ema.num_steps": torch.tensor(7)},
        "pytorch-lightning_version": "2.6.6",
        "global_step": 7,
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": []}],
    }


def _written(write) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x"
        return (write(file) or file).read_bytes()


def digest(content) -> str:
    """Of all tensors and numbers."""
    sha256 = hashlib.sha256()

    def add(x) -> None:
        if isinstance(x, dict):
            for key, each in x.items():
                sha256.update(repr(key).encode())
                add(each)
        elif isinstance(x, list | tuple):
            for each in x:
                add(each)
        elif isinstance(x, torch.Tensor):
            sha256.update(f"{x.dtype} {tuple(x.shape)}".encode() + x.numpy().tobytes())
        else:
            sha256.update(repr(x).encode())

    add(content)
    return sha256.hexdigest()


def read_a_checkpoint(file: Path) -> str:
    """To go on from, to be a teacher, and to be exported."""
    History(file.parent).newest()
    found = digest(SavedRun.read(file).content)
    load_teacher(file, network(), PATH)
    for weights in ("ema", "trained"):
        export(str(file), str(file.with_name(f"{weights}.safetensors")), weights)
    return found


def read_an_export(file: Path) -> str:
    """By itself and as a teacher."""
    what = Export.read(file)
    load_teacher(file, network(), PATH)
    return digest(vars(what))


def read_snapshot(file: Path) -> None:
    """Beside another one, to make an average of another width."""
    run = file.parents[1]
    reconstruct(str(run), 0.07, str(run / "new.ckpt"))


def read_extractor_weights(file: Path) -> None:
    """As the feature extractors do; of a smaller network."""
    found, _ = read_weights(file)
    try:
        nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).load_state_dict(found)
    except RuntimeError as error:
        raise ValueError("the weights of another network") from error


def without_comment(content: bytes) -> bytes:
    """The archive alone: a file of another program, which nothing covers."""
    return content[: -archive.COMMENT_SIZE - 2] + b"\0\0"


def with_checksum(content: bytes) -> bytes:
    """A comment of ours that fits, behind whatever stands before."""
    at = content.rfind(archive.END_OF_ARCHIVE)
    end = content[at : at + 20].ljust(20, b"\0")
    size = archive.COMMENT_SIZE.to_bytes(2, "little")
    head = content[: max(at, 0)] + end + size + b"scm_lightning step %012d sha256 " % 7
    return head + hashlib.sha256(head).hexdigest().encode()


def _mended(content: bytes, name: bytes, checksum) -> bytes:
    """Metadata with the checksum of the tensors that are there, if they can be read at all."""
    try:
        fitting = checksum(load(content)).encode()
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, AttributeError):
        return content
    start = content.find(b'"' + name + b'":"')
    return content if start < 0 else content.replace(content[start + len(name) + 4 :][:64], fitting)


def _torch_file(content: object, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def kinds() -> list[Kind]:
    """All of them."""
    ours = _written(lambda file: Checkpoint(file).write(checkpoint()))
    plain = without_comment(ours)
    bad = _torch_file({**checkpoint(), "payload": Payload()}, True)
    state = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).state_dict()
    legacy = _torch_file(checkpoint(), False)
    export = Export("diffusion", PATH.sigma_data, 7, "ema", "0.05", network().state_dict())
    exported = _written(export.write)
    snapshots = {
        f"ema/{step:07d}-{rel}.safetensors": _written(
            lambda file, rel=rel, step=step: Snapshot(
                step, 5 * step, rel, PATH.sigma_data, "diffusion"
            ).write(file, network().state_dict())
        )
        for rel in SIGMA_RELS
        for step in (3, 7)
    }
    random = torch.Generator().manual_seed(0)
    kept = KeptFeatures(
        Statistics(torch.zeros(5), torch.eye(5), 40), torch.randn(40, 5, generator=random)
    )
    reference = _written(lambda file: write_kept(file, kept))
    weights = {
        "zip.pth": _torch_file(state, True),
        "legacy.pth": _torch_file(state, False),
        "bad.pth": _torch_file({**state, "payload": Payload()}, True),
        "pickle.pth": pickle.dumps(Payload()),
        "x.safetensors": exported,
    }
    zipped, tensors = either(mutate_zip), either(mutate_safetensors)
    name = "last.ckpt"
    return [
        Kind("checkpoint", {name: ours}, read_a_checkpoint, mutate_bytes, 1500, is_covered=True),
        Kind(
            *("checkpoint, no checksum", {name: plain, "0000007.ckpt": bad, "old.ckpt": legacy}),
            *(read_a_checkpoint, zipped, 1500),
        ),
        Kind(
            *("checkpoint, new checksum", {name: plain, "0000007.ckpt": bad}),
            *(read_a_checkpoint, zipped, 1200),
            mend=with_checksum,
        ),
        Kind("export", {"x.safetensors": exported}, read_an_export, tensors, 800, is_covered=True),
        Kind(
            *("export, new checksum", {"x.safetensors": exported}, read_an_export, tensors, 800),
            mend=lambda content: _mended(content, b"scm_sha256", content_sha256),
        ),
        Kind(
            *("snapshot", snapshots, read_snapshot, tensors, 1000),
            beside={"checkpoints/last.ckpt": ours},
        ),
        Kind(
            "reference",
            {"x.safetensors": reference},
            lambda file: digest(read_kept(file)),
            tensors,
            700,
            is_covered=True,
        ),
        Kind(
            *("reference, new checksum", {"x.safetensors": reference}),
            *(lambda file: digest(read_kept(file)), tensors, 500),
            mend=lambda content: _mended(content, b"sha256", _checksum),
        ),
        Kind("extractor", weights, read_extractor_weights, either(), 1500),
        Kind(
            *(
                "extractor, one member",
                {"zip.pth": weights["zip.pth"], "bad.pth": weights["bad.pth"]},
            ),
            *(read_extractor_weights, mutate_zip, 500),
        ),
    ]
