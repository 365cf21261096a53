# SPDX-License-Identifier: Apache-2.0
"""Files of a pretrained model of diffusers: a folder here, or a repository of the Hugging Face hub.

Read are JSON and safetensors alone: no pipeline is built, no code of the folder is run.
"""

import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from scm_lightning.given_files import given_path, meant, meant_path, open_regular, read_regular
from scm_lightning.networks.diffusers_maps import MAPS

MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 1 << 26
WEIGHTS = "diffusion_pytorch_model"
PARTS = ("unet", "transformer")
"""Names of the denoiser in a pipeline, the first that is there."""
HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
SCHEDULER = "scheduler_config.json"
NO_CONTENT = (
    (b"version https://git-lfs", "a Git-LFS pointer; run `git lfs pull` in its folder"),
    (b"<", "a page of HTML or XML; download the file itself"),
)
"""Beginnings of what lies in the place of a file."""


class DiffusersFolder:
    """A model of diffusers on the disk: a pipeline's folder, or the folder of the model itself.

    Args:
        path: folder, or the name of a repository on the hub, `OWNER/NAME`, of which the needed
            files are downloaded into the cache of huggingface_hub, or taken from there. With
            HF_HUB_OFFLINE=1 set, nothing is downloaded.
        subfolder: the model's folder within it; None for that of a pipeline's `unet` or
            `transformer`, or the folder itself.
        variant: part of the names of the weights' files, `fp16`; None for those without.

    Attributes:
        name: what was given.
        model: folder of the model.
        config: configuration of the model.
        scheduler: that of the scheduler; None if there is none.
        autoencoder: that of the autoencoder; None if there is none.
        licence: licence in the head of its README.md; None if none is there.
        stored: types of the weights in the files, as the files name them.

    Raises:
        ValueError: if a file is missing, is no such file, or is of an unknown model.
    """

    def __init__(self, path: str, subfolder: str | None = None, variant: str | None = None) -> None:
        self.name, self.variant = path, variant
        self._is_remote = False
        root = self._root(path, subfolder)
        part = subfolder
        if part is None and (root / "model_index.json").is_file():
            parts = [name for name in PARTS if (root / name / "config.json").is_file()]
            part = parts[0] if parts else None
        self.model = root if part is None else root / part
        self.config = _read_json(self.model / "config.json")
        class_name = self.config.get("_class_name")
        if not isinstance(class_name, str) or class_name not in MAPS:
            raise ValueError(
                f"the model {self.model} must be one of {', '.join(MAPS)}, got {class_name}"
                f"{meant(str(class_name), MAPS)}; give the folder of the pipeline's denoiser, or "
                "adapt a module of yours by AdaptedTeacher"
            )
        places = [root / "scheduler", root, self.model, self.model.parent / "scheduler"]
        self.scheduler = _first_json([place / SCHEDULER for place in places])
        autoencoders = [each / "vae" / "config.json" for each in (root, self.model.parent)]
        self.autoencoder = _first_json(autoencoders)
        self.licence = _licence([each / "README.md" for each in (root, self.model.parent)])
        self.stored = self._check_weights(path, part)

    def load(self) -> Any:
        """Build the model with its weights, in float32.

        Raises:
            ValueError: if diffusers is not installed, or the weights do not fit the configuration.
        """
        import torch

        model_class = getattr(diffusers(), self.config["_class_name"])
        has_accelerate = find_spec("accelerate") is not None
        try:
            model, found = model_class.from_pretrained(
                str(self.model),
                variant=self.variant,
                local_files_only=True,
                use_safetensors=True,
                torch_dtype=torch.float32,
                # A large model is built without random weights, for which it needs accelerate.
                low_cpu_mem_usage=has_accelerate,
                output_loading_info=True,
            )
        except Exception as error:  # a configuration of another's hand fails in many ways
            needs_it = not has_accelerate and "low_cpu_mem_usage" in str(error)
            advice = "pip install accelerate" if needs_it else "give what save_pretrained wrote"
            raise ValueError(
                f"{self.model} cannot be loaded as {self.config['_class_name']}: {_line(error)}; "
                f"{advice}"
            ) from error
        for what, keys in (("lack", "missing_keys"), ("have", "unexpected_keys")):
            if names := sorted(found[keys]):
                raise ValueError(
                    f"the weights of {self.model} must be those of its config.json, but {what} "
                    f"{len(names)} {'of them' if what == 'lack' else 'others'}, first {names[0]}; "
                    "save it again with save_pretrained"
                )
        return model.eval()

    def _root(self, path: str, subfolder: str | None) -> Path:
        folder = Path(given_path(path))
        if folder.is_dir():
            return folder
        if not HUB_NAME.fullmatch(path):
            raise ValueError(
                f"{path} must be a folder of a diffusers pipeline or model, or a name on the hub "
                f"(OWNER/NAME), and there is no such folder{meant_path(folder)}"
            )
        self._is_remote = True
        inner = [subfolder] if subfolder else ["unet", "transformer", "."]
        configs = [f"{part}/config.json".removeprefix("./") for part in [*inner, "vae"]]
        indices = [f"{part}/{self._index}".removeprefix("./") for part in inner]
        schedulers = [f"scheduler/{SCHEDULER}", SCHEDULER]
        return self._fetch(path, ["model_index.json", "README.md", *configs, *indices, *schedulers])

    def _fetch(self, name: str, patterns: list[str]) -> Path:
        """Download files of a repository, or find them in the cache."""
        from huggingface_hub import snapshot_download  # comes with diffusers

        try:
            return Path(snapshot_download(name, allow_patterns=patterns))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name} must be a folder of a diffusers model or one of the hub, which says: "
                f"{_line(error)}; give its folder"
            ) from error

    @property
    def _index(self) -> str:
        ending = f".{self.variant}" if self.variant else ""
        return f"{WEIGHTS}.safetensors.index{ending}.json"

    def _check_weights(self, path: str, part: str | None) -> list[str]:
        """Look at the files of weights, and return the types of their numbers."""
        index = self.model / self._index
        whole = (
            f"{WEIGHTS}.{self.variant}.safetensors" if self.variant else f"{WEIGHTS}.safetensors"
        )
        names = _shards(index) if index.is_file() else [whole]
        if self._is_remote:
            prefix = f"{part}/" if part else ""
            self._fetch(path, [f"{prefix}{name}" for name in names])
        types: set[str] = set()
        for name in names:
            if not (self.model / name).is_file():
                raise ValueError(self._missing(name))
            types |= _types(self.model / name)
        return sorted(types)

    def _missing(self, name: str) -> str:
        there = sorted(each.name for each in self.model.glob(f"{WEIGHTS}*"))
        others = [each for each in there if each.endswith(".safetensors")]
        advice = "save the model with save_pretrained, which writes safetensors"
        if others:
            advice = f"there is {others[0]}: set variant to what stands in its name"
        elif there:
            advice = (
                f"{there[0]} is a pickle, which is not opened: load it where you trust it, and "
                "save it again with save_pretrained"
            )
        return f"the model {self.model} must have its weights in {name}, which is missing; {advice}"


def diffusers() -> Any:
    """Import diffusers.

    Raises:
        ValueError: if it is not installed.
    """
    import scm_lightning.torchvision_guard  # noqa: F401  diffusers imports torchvision

    try:
        import diffusers
    except ImportError as error:
        raise ValueError(
            "a teacher of diffusers needs diffusers, which is not installed; run in the clone "
            'pip install -c constraints.txt ".[latents]"'
        ) from error
    return diffusers


def _read_json(file: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    try:
        content = read_regular(file, max_bytes)
    except FileNotFoundError as error:
        raise ValueError(
            f"{file.parent} must hold {file.name}, which is missing; give the folder of a pipeline "
            "or model as save_pretrained wrote it"
        ) from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}; give another folder") from error
    _refuse_no_content(file, content)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} must be JSON: {_line(error)}; download it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} must hold a dictionary, got {type(found).__name__}")
    return found


def _first_json(files: Sequence[Path]) -> dict[str, Any] | None:
    return next((_read_json(file) for file in files if file.is_file()), None)


def _refuse_no_content(file: Path, content: bytes) -> None:
    for beginning, what in NO_CONTENT:
        if content.lstrip().startswith(beginning):
            raise ValueError(f"{file} must be the file itself, got {what}")


def _shards(index: Path) -> list[str]:
    """Names of the files that an index of weights names."""
    places = _read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} must have a weight_map; save the model with save_pretrained")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ValueError(
                f"{index} must name safetensors beside it, got {name!r:.80}; it may not lead "
                "elsewhere"
            )
    return names


def _types(file: Path) -> set[str]:
    """Types of the weights in a file, read from its head; refuses one that is no safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with open_regular(file) as opened:
            beginning = opened.read(64)
        _refuse_no_content(file, beginning)
        with safe_open(file, framework="pt") as weights:
            return {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} must be whole safetensors: {_line(error)}; download it again"
        ) from error


def _licence(files: Sequence[Path]) -> str | None:
    """Licence in the head of a model card."""
    for file in files:
        if file.is_file():
            text = read_regular(file, MAX_INDEX_BYTES).decode(errors="replace")
            try:
                head = yaml.safe_load(text.removeprefix("---").partition("\n---")[0])
            except (yaml.YAMLError, RecursionError):
                continue
            given = head if text.startswith("---") and isinstance(head, dict) else {}
            found = given.get("license_name") or given.get("license")
            names = found if isinstance(found, list) else [found]
            said = " and ".join(str(each) for each in names if isinstance(each, str))
            if said.isprintable() and said:
                return said
    return None


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
