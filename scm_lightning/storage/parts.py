# SPDX-License-Identifier: Apache-2.0
"""A checkpoint as a folder, into which every process writes its own part.

    FOLDER.ckpt/shard-00001-model-00001-of-00001.safetensors   rows of the sharded tensors that the
                shard-00002-...                                first, second, ... process has
                rest.ckpt       what else a checkpoint holds, see `archive`; of the sharded
                                tensors shape and type, on torch's device "meta"
                complete.json   step; bytes and SHA-256 of every file; written when all are there

The parts are torch.distributed.checkpoint's, which reads them into any number of processes, and
into one without any; in its safetensors format, since its own has metadata that are unpickled. The
folder is written under another name, and moved to its own once all of it is on the disk. A copy of
which something is missing does not fit its `complete.json`. A tensor's name in the parts is its
place in the checkpoint: state_dict/network.0.weight, optimizer_states/0/state/3/exp_avg.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, empty
from torch.utils import _pytree as pytree

from scm_lightning.storage.archive import (
    DamagedError,
    archive_step,
    file_sha256,
    read_archive,
    unwritten,
    write_archive,
)
from scm_lightning.whole_files import flush_folder, write_whole

REST = "rest.ckpt"
MARKER = "complete.json"
MAX_MARKER_BYTES = 1 << 26
"""Largest marker: hundreds of thousands of parts."""
PART = ".safetensors"
FORMAT_VERSION = 1

T = TypeVar("T")


def write_parts(checkpoint: Mapping[str, Any], folder: Path) -> None:
    """Write a checkpoint with sharded tensors. All processes must call.

    Args:
        checkpoint: what is to be saved, with the entry `global_step`; all but the sharded tensors
            is taken from the first process.
        folder: where; an older one of that name is replaced.

    Raises:
        OSError: if a process cannot write, in all of them; older checkpoints are left as they were.
        ValueError: if it could not be loaded without running code, in all of them.
    """
    parts = {name: x for name, x in _leaves(checkpoint).items() if isinstance(x, DTensor)}
    rest = pytree.tree_map_only(DTensor, _without_content, dict(checkpoint))
    beside = folder.with_name(f"{folder.name}.part")
    own_files = f"shard-{distributed.get_rank() + 1:05d}-*{PART}"
    try:
        _in_first_process(lambda: _begin(beside))
        writer = HuggingFaceStorageWriter(str(beside), save_distributed=True)
        _in_all_processes(lambda: save(parts, storage_writer=writer))
        entries = _in_all_processes(
            lambda: {each.name: _entry(each) for each in beside.glob(own_files)}
        )
        files = {name: entry for of_process in entries for name, entry in of_process.items()}
        _in_first_process(lambda: _complete(rest, files, beside, folder))
    except OSError as error:
        num_bytes = sum(x.numel() * x.element_size() for x in parts.values())
        raise unwritten(folder, str(error), num_bytes) from error
    finally:
        if distributed.get_rank() == 0:
            shutil.rmtree(beside, ignore_errors=True)


def are_parts(folder: Path) -> bool:
    """Tell whether there is a folder that was meant to be a checkpoint."""
    return (folder / MARKER).exists() or (folder / REST).exists()


def parts_step(folder: Path) -> int | None:
    """Optimizer steps that a folder claims to hold; None if it is damaged where they stand."""
    if not (folder / REST).is_file():
        return None
    with (folder / REST).open("rb") as opened:
        return archive_step(opened)


def check_parts(folder: Path) -> None:
    """Compare a folder with its checksums.

    Args:
        folder: a folder that exists, and no link to it, which could name another meanwhile.

    Raises:
        DamagedError: if it is damaged, or no checkpoint.
    """
    listed, parts = _listed(folder), (PART, Path(REST).suffix)
    there = {each.name for each in folder.iterdir() if each.suffix in parts and each.is_file()}
    damaged = sorted(there ^ {*listed}) if listed else [MARKER]
    damaged = damaged or [name for name in sorted(there) if _entry(folder / name) != listed[name]]
    if damaged:
        raise DamagedError(
            f"is damaged: {damaged[0]} does not fit its checksum, or is missing or too many"
        )


def read_parts(path: Path, mesh: DeviceMesh | None = None) -> dict[str, Any]:
    """Read a folder, checked and without running code from it.

    Args:
        path: a folder that exists; if it is a link that a run lets name a newer folder meanwhile,
            the older or the newer one is read, never parts of both.
        mesh: with one, sharded tensors come out sharded over it, by rows, and all of its processes
            must call; without, whole and on the CPU.

    Returns:
        What was saved.

    Raises:
        DamagedError: if it is damaged, or cannot be read.
    """
    if mesh is not None:
        return _read_folder(Path(_in_all_processes(lambda: str(path.resolve()))[0]), mesh)
    while True:
        folder = path.resolve()
        try:
            return _read_folder(folder, mesh)
        except (OSError, ValueError):
            if path.resolve() == folder:
                raise


def _read_folder(folder: Path, mesh: DeviceMesh | None) -> dict[str, Any]:
    """Read a folder that is not a link."""
    check_parts(folder)
    with (folder / REST).open("rb") as opened:
        checkpoint, _ = read_archive(opened)
    parts = {name: _space(x, mesh) for name, x in _leaves(checkpoint).items() if _is_empty(x)}
    reader = HuggingFaceStorageReader(str(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no process group, which is meant
            load(parts, storage_reader=reader, no_dist=mesh is None)
    except CheckpointException as error:
        raise DamagedError(f"cannot be read as a checkpoint: {_reason(error)}") from error

    def filled(place: tuple[Any, ...], x: Any) -> Any:
        return parts[_name(place)] if _is_empty(x) else x

    whole: dict[str, Any] = pytree.tree_map_with_path(filled, checkpoint)
    return whole


def _begin(beside: Path) -> None:
    """Make an empty folder to write to."""
    if not beside.parent.is_dir():
        raise FileNotFoundError(2, f"the folder {beside.parent} is gone")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()


def _complete(rest: Any, files: dict[str, Any], beside: Path, folder: Path) -> None:
    """Add what is not sharded, and the marker; move the folder to its place."""
    write_archive(rest, beside / REST)
    files = {**files, REST: _entry(beside / REST)}
    write_whole(beside / MARKER, _text({"step": rest["global_step"], "files": files}))
    if folder.exists():
        replaced = folder.with_name(f"{folder.name}.replaced.part")
        os.replace(folder, replaced)
        os.replace(beside, folder)
        shutil.rmtree(replaced)
    else:
        os.replace(beside, folder)
    flush_folder(folder.parent)


def _listed(folder: Path) -> dict[str, Any]:
    """Size and SHA-256 of every file, as the marker has them; empty if there is no whole one."""
    file = folder / MARKER
    try:
        if not file.is_file() or file.stat().st_size > MAX_MARKER_BYTES:
            return {}
        found = json.loads(text := file.read_text())
        is_whole = found["format_version"] == FORMAT_VERSION and _text(found) == text
        return dict(found["files"]) if is_whole else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _text(marker: dict[str, Any]) -> str:
    content = {"format_version": FORMAT_VERSION, **marker}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _entry(file: Path) -> list[Any]:
    """Size and SHA-256 of a file, as in the marker."""
    with file.open("rb") as opened:
        num_bytes = os.fstat(opened.fileno()).st_size
        return [num_bytes, file_sha256(opened, num_bytes)]


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves of nested containers by their place."""
    return {_name(place): leaf for place, leaf in pytree.tree_flatten_with_path(tree)[0]}


def _name(place: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in place)


def _without_content(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def _is_empty(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_meta


def _space(x: Tensor, mesh: DeviceMesh | None) -> Tensor:
    """Room for a tensor, or for this process's rows of it."""
    if mesh is None:
        return torch.empty(x.shape, dtype=x.dtype)
    return empty(*x.shape, dtype=x.dtype, device_mesh=mesh, placements=[Shard(0)])


def _in_first_process(action: Callable[[], T]) -> None:
    _in_all_processes(action if distributed.get_rank() == 0 else lambda: None)


def _in_all_processes(action: Callable[[], T]) -> list[T]:
    """Run an action in every process, and fail in all if it fails in one."""
    result: T | None = None
    failure: tuple[type[Exception], str] | None = None
    try:
        result = action()
    except (OSError, CheckpointException) as error:
        failure = OSError, _reason(error)
    except ValueError as error:
        failure = ValueError, str(error)
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, (result, failure))
    for _, failed in found:
        if failed is not None:
            raise failed[0](failed[1])
    return [result for result, _ in found]


def _reason(error: BaseException) -> str:
    """One clause, without the traceback that torch makes part of its message."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    said = error.strerror if isinstance(error, OSError) else None
    return (said or str(error)).partition("\n")[0]
