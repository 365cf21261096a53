# SPDX-License-Identifier: Apache-2.0
"""The weights of one network of a run: what one samples from, and what a student learns from.

    FILE.safetensors    parameters and buffers by their names in the network, whole, and metadata

    scm_format_version  2; 1 in files without what is needed to sample, which are read too
    scm_version         version of this package that wrote it
    scm_module          kind of the run: diffusion or consistency
    scm_sigma_data      standard deviation of the data, a number
    scm_step            optimizer steps that are in the weights
    scm_weights         ema or trained
    scm_profile         of an average, as in tables: a sigma_rel, or a half-life in images
    scm_sha256          of names, types, shapes and bytes of all tensors
    scm_entries_sha256  of the other entries; files of version 0.3.0 have none
    scm_network, ...    what is needed to sample, as JSON: see `SamplingFacts`

A safetensors file has no checksum of its own: without those two entries a flipped bit would be a
changed weight, or another sigma_data, silently. Trap: what is tied in the network is there
under each of its names.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from scm_lightning import __version__
from scm_lightning.storage.tensor_file import opened_tensors, write_tensors

SUFFIX = ".safetensors"
PREFIX = "scm_"
"""Prefix of our entries, so that they stand apart from those of other programs."""
FORMAT_VERSION = "2"
OLDER = "1"
OWN = ("format_version", "version", "module", "sigma_data", "step", "weights", "profile")
"""Entries of every export, beside the checksums."""


@dataclass(frozen=True)
class Export:
    """Weights of one network, and what they are of.

    Args:
        module: kind of the run.
        sigma_data: standard deviation of the data that the network is trained on. Data units.
        step: optimizer steps taken.
        weights: `ema` or `trained`.
        profile: short name of the average's profile; empty for trained weights, or if unknown.
        tensors: parameters and buffers by name, on the CPU.
        entries: further entries, by their names without the prefix; see `SamplingFacts`.
        version: version of this package that wrote the file.
    """

    module: str
    sigma_data: float
    step: int
    weights: str
    profile: str
    tensors: Mapping[str, Tensor]
    entries: Mapping[str, str] = field(default_factory=dict)
    version: str = __version__

    @property
    def licence(self) -> str | None:
        """Licence of the weights; None if not known."""
        return self.entries.get("licence")

    def write(self, file: Path) -> None:
        """Write a file, which is there whole or not at all.

        Args:
            file: where; an older one is replaced.

        Raises:
            OSError: if it cannot be written; an older one is left as it was.
        """
        # Own memory for each: the format refuses tensors that share some.
        copies = {
            name: weight.detach().clone(memory_format=torch.contiguous_format)
            for name, weight in self.tensors.items()
        }
        entries = {
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "module": self.module,
            "sigma_data": repr(self.sigma_data),
            "step": str(self.step),
            "weights": self.weights,
            "profile": self.profile,
            **self.entries,
            "sha256": content_sha256(copies),
        }
        entries["entries_sha256"] = _entries_sha256(entries)
        metadata = {f"{PREFIX}{name}": value for name, value in entries.items()}
        write_tensors(file, copies, {"format": "pt"} | metadata)

    @classmethod
    def read(cls, file: Path) -> "Export":
        """Read such a file.

        Args:
            file: the file.

        Raises:
            ValueError: if it is missing, damaged, of a newer version or of another program.
        """
        if not file.exists():
            raise ValueError(
                f"there is no file {file}; write one with `scm export`, or give a .ckpt"
            )
        with opened_tensors(file) as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        version = metadata.get(f"{PREFIX}format_version")
        if version not in (FORMAT_VERSION, OLDER):
            raise ValueError(
                f"{file} must be an export of format {FORMAT_VERSION}, its metadata name "
                f"{'none' if version is None else version}; give a file that `scm export` wrote, "
                "or install a newer scm_lightning"
            )
        entry = {
            name.removeprefix(PREFIX): value
            for name, value in metadata.items()
            if name.startswith(PREFIX)
        }
        try:
            said = _entries_sha256(entry)
            is_whole = entry["sha256"] == content_sha256(tensors)
            is_whole &= entry.get("entries_sha256", said if version == OLDER else None) == said
            found = _export_of(entry, tensors)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"the metadata of {file} are damaged: {error}; export it again"
            ) from error
        if not is_whole:
            raise ValueError(
                f"{file} is damaged: its weights or entries do not fit their checksums; export it "
                "again"
            )
        return found


def _export_of(entry: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Export:
    """The export that a file's entries describe."""
    sums = {name for name in entry if name.endswith("sha256")}
    return Export(
        module=entry["module"],
        sigma_data=float(entry["sigma_data"]),
        step=int(entry["step"]),
        weights=entry["weights"],
        profile=entry["profile"],
        tensors=tensors,
        entries={name: value for name, value in entry.items() if name not in {*OWN, *sums}},
        version=entry["version"],
    )


def _entries_sha256(entries: Mapping[str, str]) -> str:
    """SHA-256 of an export's entries about itself, in the order of the names."""
    covered = sorted(each for each in entries.items() if not each[0].endswith("sha256"))
    return hashlib.sha256(repr(covered).encode()).hexdigest()


def content_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
