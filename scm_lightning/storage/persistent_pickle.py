# SPDX-License-Identifier: Apache-2.0
"""Networks that EDM, EDM2 and edm2_sCM pickled together with their source code, read as data.

    file    = pickle of {"ema": object, "encoder": object (EDM2), and what is not read here}
    object  = {"type": "class", "version": 6, "module_src", "class_name", "state"}
    state   = attributes of a module: _parameters, _buffers, _modules, _init_kwargs, ...
    storage = a whole file of torch.save, inside the pickle, for every tensor

The usual way to open such a file runs the source code that it holds, and each storage is a pickle
again, which torch by itself would run too. Here an object is a record of its name and its state
(`PersistentObject`), and storages are read by torch's restricted unpickler.
Source: NVlabs/edm and NVlabs/edm2, torch_utils/persistence.py, for the layout.
"""

import hashlib
import io
import os
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scm_lightning.given_files import PICKLE, open_regular, refuse_others
from scm_lightning.storage.archive import load_tensors
from scm_lightning.storage.inert_pickle import Built, Maker, Once, read_inert
from scm_lightning.storage.pickled_arrays import ARRAY_MAKERS, Array

VERSION = 6
"""Version of the layout of an object; all published files have it."""
OLD_ARCHIVE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""Beginning of a storage in a pickle: a file of torch.save before it wrote zip archives."""
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int64, torch.bool),
)
MOST_AXES = 8
MOST_LEVELS = 32
"""Depth of modules within modules; the known ones have some 5."""
OF_A_MODULE = ("_parameters", "_buffers", "_modules")


class PersistentObject(Built):
    """Record of an object: the name of its class, and its state. Nothing of it was run.

    Args:
        class_name: name of its class, within its source code.
        state: its attributes by name.
        source_sha256: SHA-256 of its source code, 64 hex digits; empty for torch's own containers.
    """

    def __init__(self, class_name: str, state: dict[str, Any], source_sha256: str = "") -> None:
        self.class_name, self.state, self.source_sha256 = class_name, state, source_sha256

    def build(self, state: Any) -> None:
        """Take the state of one of torch's containers."""
        if self.source_sha256 or self.state:
            raise ValueError(f"it changes a {self.class_name} that is complete")
        self.state = _named(state)

    def attribute(self, name: str) -> Any:
        """Value of an attribute: a number, a string, a list, a tensor, another object, ...

        Raises:
            ValueError: if there is none; the message is the reason alone.
        """
        if name not in self.state:
            raise ValueError(f"its {self.class_name} has no {name}")
        value = self.state[name]
        return value.tensor() if isinstance(value, Array) else value

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """Named arguments that it was made with; those given by place are not among them."""
        given = self.state.get("_init_kwargs")
        return dict(given) if isinstance(given, dict) else {}

    @property
    def children(self) -> dict[str, "PersistentObject"]:
        """Modules in it by name, in the order in which they were added."""
        return {
            name: child
            for name, child in _named(self.attribute("_modules")).items()
            if isinstance(child, PersistentObject)
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Weights and buffers of it and of all in it, by name: `model.enc.32x32_conv.weight`.

        They are on the CPU, float32 where the file has halves, in the order of the modules.

        Raises:
            ValueError: if it is no module, or a weight is not finite; the message is the reason.
        """
        return dict(_weights(self, "", set()))


class PersistentFile(NamedTuple):
    """Parts of a file that are read.

    Attributes:
        ema: the network.
        encoder: between images and latents, or None: of networks of latents it has the attributes
            `scale` and `bias`, `vae_name`.
        loss_fn: loss that it was trained with, or None.
    """

    ema: PersistentObject
    encoder: PersistentObject | None
    loss_fn: PersistentObject | None


def read_persistent(file: str | os.PathLike[str]) -> PersistentFile:
    """Read the network of a file, without running code from it.

        net = read_persistent("edm2-img64-s-1073741-0.075.pkl").ema
        net.class_name, net.init_kwargs      # "Precond", {"img_resolution": 64, ...}
        net.attribute("sigma_data")          # 0.5
        net.state_dict()                     # {"unet.emb_fourier.freqs": tensor, ...}

    Args:
        file: a .pkl file of EDM, EDM2 or edm2_sCM.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is another kind of file, is damaged, or holds what such a file does not.
    """
    with open_regular(file) as opened:
        refuse_others(file, opened, PICKLE)
        try:
            content = read_inert(opened, MAKERS)
            if not isinstance(content, dict) or "ema" not in content:
                raise ValueError("it has no `ema`, the network")
            found = content["ema"], content.get("encoder")
            for name, each in zip(("ema", "encoder"), found, strict=True):
                if not isinstance(each, PersistentObject) and (name == "ema" or each is not None):
                    raise ValueError(f"its `{name}` is a {type(each).__name__}, not an object")
        except ValueError as error:
            raise ValueError(
                f"{os.fspath(file)} must be a pickle of EDM, EDM2 or edm2_sCM, whole and with "
                f"nothing else in it: {error}; take the file from its makers' page"
            ) from error
    loss_fn = content.get("loss_fn")
    return PersistentFile(*found, loss_fn if isinstance(loss_fn, PersistentObject) else None)


def _named(value: Any) -> dict[str, Any]:
    """The value, which must be a dictionary with names as keys."""
    if not isinstance(value, dict) or not all(
        isinstance(key, str) and key.isprintable() for key in value
    ):
        raise ValueError(f"it has a {type(value).__name__} in place of named values")
    return value


def _weights(module: PersistentObject, prefix: str, seen: set[int]) -> list[tuple[str, Tensor]]:
    """Weights and buffers by name; a module within itself has no end, one in many too many."""
    if id(module) in seen:
        raise ValueError(f"its {module.class_name} is in the network twice")
    if prefix.count(".") > MOST_LEVELS:
        raise ValueError(f"its modules are nested deeper than {MOST_LEVELS} levels")
    seen.add(id(module))
    weights, buffers, modules = (_named(module.attribute(name)) for name in OF_A_MODULE)
    found = []
    for name, value in (weights | buffers).items():
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            raise ValueError(f"its {prefix}{name} is not finite")
        if isinstance(value, Tensor):
            found.append((f"{prefix}{name}", value))
        elif value is not None:
            raise ValueError(f"its {prefix}{name} is a {type(value).__name__}, not a tensor")
    for name, child in modules.items():
        if isinstance(child, PersistentObject):
            found += _weights(child, f"{prefix}{name}.", seen)
        elif child is not None:
            raise ValueError(f"its {prefix}{name} is a {type(child).__name__}, not a module")
    return found


def _dictionary(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    if arguments:
        raise ValueError("it makes a dictionary from arguments")
    return {}


def _persistent(arguments: tuple[Any, ...]) -> PersistentObject:
    match arguments:
        case ({"type": "class", "version": version, "class_name": str(name)} as meta,):
            source, state = meta.get("module_src"), meta.get("state")
            if type(version) is not int or version != VERSION:
                raise ValueError(f"its objects are not of version {VERSION}")
            if isinstance(source, str) and name.isidentifier():
                sha256 = hashlib.sha256(source.encode(errors="surrogatepass")).hexdigest()
                return PersistentObject(name, _named({} if state is None else state), sha256)
    raise ValueError("it has an object without type, version, class_name, module_src and state")


def _container(name: str) -> Maker:
    def made(arguments: tuple[Any, ...]) -> PersistentObject:
        if arguments:
            raise ValueError(f"it makes a {name} from arguments")
        return PersistentObject(name, {})

    return made


def _storage(arguments: tuple[Any, ...]) -> Once:
    match arguments:
        case (Once() as once,):
            content = once.take()
            if not (isinstance(content, bytes) and content.startswith(OLD_ARCHIVE)):
                raise ValueError("the bytes of a tensor are not a storage of torch")
            storage = load_tensors(io.BytesIO(content))
            if isinstance(storage, torch.storage.TypedStorage):
                return Once(storage)
    raise ValueError("the bytes of a tensor are not a storage of torch")


def _tensor(arguments: tuple[Any, ...]) -> Tensor:
    """A tensor of its own memory, float32 if it was stored in half precision."""
    match arguments:
        case (Once() as once, int(offset), tuple(size), tuple(stride), bool(), dict()):
            storage = once.take()
        case _:
            raise ValueError("it has a tensor of another form than torch writes")
    if not isinstance(storage, torch.storage.TypedStorage) or storage.dtype not in DTYPES:
        raise ValueError("it has a tensor that does not hold floats, int64 or booleans")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch writes such storages, and deprecates
        untyped = storage.untyped()  # type: ignore[no-untyped-call]
    flat = torch.empty(0, dtype=storage.dtype).set_(untyped)
    numel = _numel(size, stride)
    if not 0 <= offset <= offset + numel <= len(flat):
        raise ValueError(
            f"it has a tensor of {numel:,} numbers from {offset:,} on, in a storage of "
            f"{len(flat):,}"
        )
    x = flat[offset : offset + numel].reshape(size)
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x.clone()


def _numel(size: tuple[Any, ...], stride: tuple[Any, ...]) -> int:
    """Number of numbers of a tensor, which must lie one behind the other."""
    if len(size) != len(stride) or len(size) > MOST_AXES:
        raise ValueError(f"it has a tensor of {len(size)} axes with {len(stride)} strides")
    numel = 1
    for length, step in zip(reversed(size), reversed(stride), strict=True):
        if type(length) is not int or not 0 < length < 1 << 40:
            raise ValueError("it has a tensor with a size that is not a count")
        if length > 1 and step != numel:
            raise ValueError("it has a tensor whose numbers do not lie one behind the other")
        numel *= length
    return numel


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    match arguments:
        case (Tensor() as weight, bool(), dict()):
            return weight
    raise ValueError("it has a parameter that is not a tensor")


MAKERS: dict[tuple[str, str], Maker] = {
    ("dnnlib.util", "EasyDict"): _dictionary,
    ("collections", "OrderedDict"): _dictionary,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    **{
        ("torch.nn.modules.container", name): _container(name)
        for name in ("ModuleDict", "ModuleList", "Sequential")
    },
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **ARRAY_MAKERS,
}
"""All names that such a file may hold, and what stands for each."""
