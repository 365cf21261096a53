# SPDX-License-Identifier: Apache-2.0
"""The configurations that come with the source code, to begin a run from.

What a run needs beside one of them is given as options, so that its command says all that it does.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import scm_lightning
from scm_lightning.cli.parsers import CommandParser
from scm_lightning.cli.strict_yaml import read_yaml
from scm_lightning.data.index import ShardIndex
from scm_lightning.data.prompts import TEXT

ROOT, FOLDER = "data.init_args.root", "trainer.default_root_dir"
BATCH = "data.init_args.batch_size"
FEATURES, TEACHER = "metrics.features", "model.init_args.teacher"
NETWORKS = ("model.init_args.network", "model.init_args.student")
SHARDS = "scm_lightning.data.Shards"
FREE = {"data_shape", "num_classes", "guided", "two_times", "dropout"}
"""Options of a student's network that follow the data, or need not be those of the teacher's."""
DEFAULTS = {
    BATCH: 128,
    "data.init_args.use_labels": True,
    "trainer.accelerator": "auto",
    "trainer.devices": "auto",
    "trainer.num_nodes": 1,
    "trainer.strategy": "auto",
}
"""Defaults of options that a configuration may leave out."""
MACHINE = [key for key in DEFAULTS if key.startswith("trainer.")]
MOST_PIXELS = 64 * 64
"""Largest image that the small networks here are for."""
SAYS_NOTHING = {"data", "shards", "runs", "/", ".."}
"""Parts of a path that are no name of a set of images."""
Options = dict[str, Any]
"""Values by dotted key."""


class Template(NamedTuple):
    """A configuration.

    Attributes:
        file: its file.
        content: what is in it.
    """

    file: Path
    content: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """Value of a dotted key, or its default."""
        return value_of(self.content, key, DEFAULTS.get(key))

    @property
    def network(self) -> str:
        """Key of the network that is trained."""
        return NETWORKS[not self.get(NETWORKS[0])]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the data. (C, H, W)."""
        return tuple(self.get(f"{self.network}.init_args.data_shape"))

    @property
    def takes_text(self) -> bool:
        """Tell whether its network has an input of texts."""
        return bool(self.get(f"{self.network}.init_args.text_channels"))

    @property
    def num_gpus(self) -> int:
        """GPUs that it is written for; 0 for the CPU."""
        if self.get("trainer.accelerator") == "cpu":
            return 0
        return int(self.get("trainer.devices")) * int(self.get("trainer.num_nodes"))

    def words(self, wanted: Options) -> list[str]:
        """Words after `scm fit`: the file, and the options that it does not set already."""
        words = ["--config", str(self.file)]
        for key, value in wanted.items():
            if (self.get(key) or None) != (value or None):  # no classes are 0, or not said
                text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
                words += [f"--{key}", text]
        return words


def value_of(content: Any, key: str, default: Any = None) -> Any:
    """Value of a dotted key in maps of maps; `default`, where there is none."""
    for name in key.split("."):
        if not isinstance(content, Mapping) or name not in content:
            return default
        content = content[name]
    return content


def for_data(folder: str, index: ShardIndex) -> list[str] | None:
    """Words after `scm fit` to train on shards, on this machine.

    Args:
        folder: folder of the shards.
        index: its index.

    Returns:
        Words, with those first that fit best; None, where no network here is for such data.
    """
    num_gpus, has_text = torch.cuda.device_count(), TEXT in index.conditions

    def misfit(template: Template) -> tuple[Any, ...]:
        ratio = math.log(math.prod(index.shape[1:]) / math.prod(template.shape[1:]))
        return (
            template.get(ROOT) != folder,
            bool(template.get("data.init_args.degradation")),
            template.shape != index.shape,
            bool(num_gpus) != bool(template.num_gpus),
            str(template.get(f"{template.network}.class_path")).endswith("MLP"),
            abs(ratio),
            abs(template.shape[0] - index.shape[0]),
            template.file.name,
        )

    for template in sorted(_of_shards(), key=misfit):
        if template.num_gpus > num_gpus or template.takes_text != has_text:
            continue
        if template.get(ROOT) == folder:
            return template.words({})
        wanted = _for_index(template, folder, index, num_gpus)
        if math.prod(index.shape[1:]) <= MOST_PIXELS and _network(template, wanted):
            return template.words(wanted)
    return None


def for_student(teacher: Mapping[str, Any], weights: str) -> list[str] | None:
    """Words after `scm fit` to distil a teacher.

    Args:
        teacher: its configuration.
        weights: its checkpoint or export.

    Returns:
        Words; None, if it is no teacher, or no configuration of a student has its network.
    """
    given = Template(Path(), teacher)
    if not given.get(NETWORKS[0]):
        return None
    own = _network(given, {})
    for template in sorted(_templates("*_scd.yaml"), key=lambda each: each.shape != given.shape):
        network = f"{template.network}.init_args"
        folder = str(given.get(FOLDER) or ".")
        wanted = {
            FOLDER: folder.replace("teacher", "scd") if "teacher" in folder else f"{folder}_scd",
            TEACHER: weights,
            ROOT: given.get(ROOT),
            "data.init_args.use_labels": given.get("data.init_args.use_labels"),
            BATCH: min(template.get(BATCH), given.get(BATCH)),
            **{key: given.get(key) for key in MACHINE},
            **({} if given.get(FEATURES) else {FEATURES: None}),
            f"{network}.data_shape": list(given.shape),
            f"{network}.num_classes": given.get(f"{NETWORKS[0]}.init_args.num_classes") or 0,
            f"{network}.text_channels": given.get(f"{NETWORKS[0]}.init_args.text_channels") or 0,
        }
        is_alike = own is not None and own == _network(template, {})
        if is_alike and template.get("data.class_path") == given.get("data.class_path"):
            return template.words(wanted)
    return None


def _templates(pattern: str) -> Iterator[Template]:
    """Configurations beside this package, or, where it is installed without, in this folder."""
    beside, here = Path(scm_lightning.__file__).parents[1] / "configs", Path("configs")
    if beside.is_relative_to(Path.cwd()):
        beside = beside.relative_to(Path.cwd())
    for file in sorted((beside if beside.is_dir() else here).glob(pattern)):
        template = Template(file, read_yaml(file))
        if any(template.get(f"{key}.init_args.data_shape") for key in NETWORKS):
            yield template


def _of_shards() -> list[Template]:
    """Those that need no other run, and take prepared data."""
    found = [each for each in _templates("*.yaml") if each.get("data.class_path") == SHARDS]
    return [each for each in found if not each.get(TEACHER)]


def _for_index(template: Template, folder: str, index: ShardIndex, num_gpus: int) -> Options:
    """Options of a configuration for other data than its own; their scores are no others'."""
    network = f"{template.network}.init_args"
    parts = [part for part in Path(folder).parts[-3:] if part not in SAYS_NOTHING]
    name, kind = "_".join(parts) or "run", template.file.stem.rpartition("_")[2]
    is_for_cpu, text = template.num_gpus == 0, index.conditions.get(TEXT)
    return {
        FOLDER: f"runs/{name}_{kind}",
        ROOT: folder,
        "data.init_args.use_labels": index.num_classes > 0,
        BATCH: min(template.get(BATCH), index.splits["train"].num_samples),
        f"{network}.data_shape": list(index.shape),
        f"{network}.num_classes": index.num_classes,
        **({f"{network}.text_channels": text.shape[-1]} if text else {}),
        FEATURES: None,
        **({"trainer.accelerator": "gpu", "trainer.devices": 1} if is_for_cpu and num_gpus else {}),
    }


def _network(template: Template, wanted: Options) -> Options | None:
    """Options of the network that are not free, with their defaults; None if it cannot be built."""
    place = f"{template.network}.init_args."
    given = {key.removeprefix(place): x for key, x in wanted.items() if key.startswith(place)}
    spec = {**template.get(template.network)}
    spec["init_args"] = {**(spec.get("init_args") or {}), **given}
    parser = CommandParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    try:
        parsed = parser.parse_object({"network": spec})
        with torch.device("meta"):
            parser.instantiate(parsed)
    except ValueError:
        return None
    found = parsed.as_dict()["network"]
    fixed = {key: x for key, x in found["init_args"].items() if key not in FREE}
    return {"class_path": found["class_path"], **fixed}
