# SPDX-License-Identifier: Apache-2.0
"""Snapshots of averaged weights: the files, and sums of them.

One safetensors file per step and width, `<step>-<sigma_rel>.safetensors`: the parameters of the
averaged network by name, in the data type of the snapshots, and as metadata what they are of.
Buffers are named but not kept, since an average only copies them. What a file is, its metadata say,
never its name.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scm_lightning.given_files import open_regular
from scm_lightning.storage.tensor_file import opened_tensors, write_tensors

SNAPSHOT_FOLDER = "ema"
"""Folder of the snapshots in the folder of a run."""
FORMAT_VERSION = "1"


@dataclass(frozen=True)
class Snapshot:
    """Content of one file.

    Args:
        step: optimizer steps that the average had taken in.
        images: images that it had taken in; None in files of version 0.3.0, whose profiles counted
            steps, in batches of one size.
        sigma_rel: relative width of its power-function profile.
        sigma_data: standard deviation of the data that the network is trained on. Data units.
        module: kind of the run.
        buffers: names of the network's buffers, which the file does not hold.
        file: the file; None before it is written.
    """

    step: int
    images: int | None
    sigma_rel: float
    sigma_data: float
    module: str
    buffers: tuple[str, ...] = ()
    file: Path | None = None

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        """Write it.

        Args:
            folder: folder of the snapshots; made if missing.
            weights: parameters of the averaged network, by name; contiguous, on the CPU, no two of
                them in the same memory.

        Returns:
            The file.

        Raises:
            OSError: if it cannot be written.
        """
        metadata = {
            "format_version": FORMAT_VERSION,
            "step": str(self.step),
            "images": str(self.images),
            "sigma_rel": repr(self.sigma_rel),
            "sigma_data": repr(self.sigma_data),
            "module": self.module,
            "buffers": json.dumps(self.buffers),
        }
        file = folder / f"{self.step:07d}-{self.sigma_rel}.safetensors"
        write_tensors(file, weights, metadata)
        return file

    @classmethod
    def read(cls, file: Path) -> "Snapshot":
        """Read what a file holds, without its weights.

        Args:
            file: the file.

        Raises:
            ValueError: if it is damaged or no snapshot, or no regular file.
        """
        open_regular(file).close()  # which says what it is instead
        try:
            with opened_tensors(file) as opened:
                metadata = opened.metadata() or {}
            found = cls(
                int(metadata["step"]),
                int(metadata["images"]) if "images" in metadata else None,
                float(metadata["sigma_rel"]),
                float(metadata["sigma_data"]),
                metadata["module"],
                tuple(json.loads(metadata["buffers"])),
                file,
            )
            if found.step < 1 or (found.images is not None and found.images < 1):
                raise ValueError("an average is of at least one step, of at least one image")
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{file} is not a snapshot of an average, or is damaged; move it out of the folder"
            ) from error
        return found


def read_snapshots(folder: Path) -> list[Snapshot]:
    """Read what the snapshots of a run are, without their weights.

    Args:
        folder: folder of the snapshots; none are in a missing one.

    Returns:
        The snapshots by step, then by width.

    Raises:
        ValueError: if a file is damaged or no snapshot.
    """
    found = [Snapshot.read(file) for file in folder.glob("*.safetensors")]
    return sorted(found, key=lambda each: (each.step, each.sigma_rel))


def ends_of_profiles(snapshots: Sequence[Snapshot]) -> list[float]:
    """Ends of the profiles of a run's snapshots.

    Args:
        snapshots: the snapshots.

    Returns:
        Images, in the order of the snapshots; where no file tells them, steps, which are as good:
        batches had one size.

    Raises:
        ValueError: if files of version 0.3.0 are among others whose batches changed.
    """
    sizes = {each.images / each.step for each in snapshots if each.images is not None}
    if len(sizes) > 1 and any(each.images is None for each in snapshots):
        raise ValueError(
            "snapshots must tell the images that they have taken in where the batch size changed, "
            "those of version 0.3.0 tell only steps; move these out of the folder"
        )
    size = max(sizes, default=1.0)
    return [each.step * size if each.images is None else each.images for each in snapshots]


def sum_of_snapshots(terms: Iterable[tuple[float, Snapshot]]) -> dict[str, Tensor]:
    """Add up snapshots, one file in memory at a time.

    Args:
        terms: coefficients and snapshots, at least one.

    Returns:
        sum_i c_i weights_i by name, float64.

    Raises:
        ValueError: if the snapshots are of different networks.
    """
    total: dict[str, Tensor] = {}
    first: Snapshot | None = None
    for coefficient, snapshot in terms:
        assert snapshot.file is not None, "whoever reads it sets it"
        with opened_tensors(snapshot.file) as opened:
            names = list(opened.keys())
            if first is None:
                first = snapshot
                shapes = {name: opened.get_slice(name).get_shape() for name in names}
                total = {name: torch.zeros(shapes[name], dtype=torch.float64) for name in names}
            if {name: opened.get_slice(name).get_shape() for name in names} != shapes:
                raise ValueError(
                    f"snapshots must be of one network, {first.file} and {snapshot.file} are of "
                    "different ones; move away those that do not belong to the run"
                )
            for name in names:
                total[name] += coefficient * opened.get_tensor(name).double()
    return total
