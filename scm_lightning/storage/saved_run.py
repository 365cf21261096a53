# SPDX-License-Identifier: Apache-2.0
"""Content of a checkpoint of this package, by its meaning.

ema.network.*              the averaged network that is sampled from
further_emas.0.network.*   averages that are only tracked
student.*, network.*       the network that the optimizer changes; the metadata say which
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scm_lightning.given_files import meant_path
from scm_lightning.storage.checkpoint import Checkpoint
from scm_lightning.storage.export import SUFFIX, Export
from scm_lightning.storage.history import LAST

METADATA_KEY = "scm_lightning"
"""Entry of a checkpoint that says what it holds; written by the modules, read here."""
EMA_PREFIX = "ema.network."
FURTHER_EMA = "further_emas.{}.network."


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint of a run of this package.

    Args:
        path: file or folder.
        content: what was saved.
    """

    path: Path
    content: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "SavedRun":
        """Read a checkpoint without running code from it.

        Args:
            path: file or folder.

        Raises:
            ValueError: if it is missing, damaged or from another program.
        """
        path = Path(path)
        checkpoint = Checkpoint(path)
        if not checkpoint.exists():
            raise ValueError(f"there is no checkpoint {path}{_instead_of(path)}")
        if path.suffix == SUFFIX:
            raise ValueError(
                f"{path} has only weights and is not a checkpoint of a run; give the .ckpt file, "
                "and an export only as a teacher"
            )
        content = checkpoint.read(mmap=True)
        if not _is_of_a_run(content):
            raise ValueError(
                f"{path} is not a checkpoint of scm_lightning; give one that `scm fit` wrote"
            )
        return cls(path, content)

    @property
    def metadata(self) -> dict[str, Any]:
        """Entries of the modules about it."""
        return dict(self.content[METADATA_KEY])

    @property
    def reconstructed(self) -> Mapping[str, Any] | None:
        """Width, step and residual, if `scm reconstruct` wrote it."""
        return self.metadata.get("reconstructed")

    def average(self, name: str | None = None) -> Export:
        """An averaged network.

        Args:
            name: which, by its profile; by default the one that is sampled from.

        Raises:
            ValueError: if there is none of this name.
        """
        profiles = list(self.metadata.get("averages", [""]))  # an older version does not name them
        if self.reconstructed is not None:
            profiles[0] = f"{self.reconstructed['sigma_rel']:g}"
        if name is not None and name not in profiles:
            listed = (
                ", ".join(profiles) if all(profiles) else "which has no names in an older version"
            )
            raise ValueError(
                f"ema must be one of the averages of {self.path}, {listed}, got {name}"
            )
        place = 0 if name is None else profiles.index(name)
        prefix = EMA_PREFIX if place == 0 else FURTHER_EMA.format(place - 1)
        step = self._steps(prefix)
        if self.reconstructed is not None and place == 0:
            step = int(self.reconstructed["step"])
        return self._export(prefix, step, "ema", profiles[place])

    def trained(self) -> Export:
        """The network that the optimizer changes.

        Raises:
            ValueError: if an older version does not say which it is.
        """
        if "trained" not in self.metadata:
            raise ValueError(
                f"{self.path} does not say which of its networks is trained, it is of an older "
                "version; export its average, or train on for a checkpoint of this version"
            )
        prefix = f"{self.metadata['trained']}."
        return self._export(prefix, self._steps(EMA_PREFIX), "trained", "")

    def _steps(self, prefix: str) -> int:
        """Optimizer steps that an average has taken in."""
        name, state = f"{prefix.removesuffix('network.')}num_steps", self.content["state_dict"]
        if name not in state:
            raise ValueError(f"{self.path} is damaged: it has no {name}; give another")
        return int(state[name])

    def _export(self, prefix: str, step: int, weights: str, profile: str) -> Export:
        tensors = {
            name.removeprefix(prefix): weight
            for name, weight in self.content["state_dict"].items()
            if name.startswith(prefix)
        }
        if not tensors:
            raise ValueError(
                f"{self.path} is damaged: it has no weights at {prefix!r}; give another"
            )
        module, sigma_data = self.metadata["module"], self.metadata["sigma_data"]
        licence = self.metadata.get("licence")
        entries = {} if licence is None else {"licence": str(licence)}
        return Export(module, sigma_data, step, weights, profile, tensors, entries)


def _instead_of(path: Path) -> str:
    """Advice on what to give in place of a checkpoint that does not exist."""
    if (last := path / "checkpoints" / LAST).exists():
        return f", which is the folder of a run; did you mean {last}?"
    others = Checkpoint(path).siblings()
    listed = f"; {path.parent} has {others}" if others != "none" else ""
    return listed or meant_path(path) or "; train first with `scm fit`, or give another path"


def _is_of_a_run(checkpoint: Any) -> bool:
    """Tell whether a file holds what Lightning and the modules write, of the types they write."""
    if not isinstance(checkpoint, dict):
        return False
    metadata, state = checkpoint.get(METADATA_KEY), checkpoint.get("state_dict")
    return (
        isinstance(metadata, dict)
        and isinstance(metadata.get("module"), str)
        and isinstance(metadata.get("sigma_data"), int | float)
        and isinstance(state, dict)
        and all(isinstance(weight, Tensor) for weight in state.values())
        and "pytorch-lightning_version" in checkpoint
    )
