# SPDX-License-Identifier: Apache-2.0
"""Writer of small files of the structure in which EDM, EDM2 and edm2_sCM publish their networks.

The published files can't be had in a test. These have the same nesting, names of classes and of
functions, types and kinds of numbers; their module_src is text of ours that must never be run.

    net = tree(
        weights,                                     # {"model.enc.32x32_conv.weight": tensor, ...}
        {"": "EDMPrecond", "model": "SongUNet", "model.enc": "ModuleDict", "model.dec": ...},
        kwargs={"": {"img_resolution": 32, ...}},    # _init_kwargs by the path of the module
        attributes={"": {"sigma_data": 0.5}},
        buffers={"model.enc.16x16_down.conv0.resample_filter"},
    )
    write_persistent(folder / "edm-cifar10-32x32-cond-vp.pkl", net, style="edm")

It is read again by `scm_lightning.storage.persistent_pickle.read_persistent`.
"""

import io
import pickle
import sys
import types
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

SOURCE = "raise SystemExit('the source code in a pickle was run')\n"
CONTAINERS = {"ModuleDict": torch.nn.ModuleDict, "ModuleList": torch.nn.ModuleList}


@dataclass
class Node:
    """An object with source code, or one of torch's containers.

    Args:
        class_name: name of its class; ModuleDict and ModuleList are torch's own.
        parameters: its own weights by name; None for a layer without.
        buffers: its own buffers.
        children: modules in it, in the order in which they were added.
        init_kwargs: arguments that it was made with.
        attributes: further attributes: `sigma_data`, `skip_scale` (np.sqrt(0.5)), ...
        is_module: False for a loss or an encoder, which have attributes only.
    """

    class_name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    buffers: dict[str, Any] = field(default_factory=dict)
    children: dict[str, Any] = field(default_factory=dict)
    init_kwargs: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    is_module: bool = True


def tree(
    tensors: dict[str, Tensor],
    classes: dict[str, str],
    *,
    kwargs: dict[str, dict[str, Any]] | None = None,
    attributes: dict[str, dict[str, Any]] | None = None,
    buffers: set[str] = frozenset(),
    default: str = "Conv2d",
) -> Node:
    """Make the tree of a flat state dict.

    Args:
        tensors: by full name, in the order of the modules.
        classes: class names by the path of the module, "" for the network.
        kwargs: `_init_kwargs` by path.
        attributes: further attributes by path.
        buffers: full names of those that are buffers, all others are parameters.
        default: class name where `classes` has none.
    """
    kwargs, attributes = kwargs or {}, attributes or {}
    nodes: dict[str, Node] = {}

    def at(path: str) -> Node:
        if path not in nodes:
            nodes[path] = Node(
                classes.get(path, default),
                init_kwargs=kwargs.get(path, {}),
                attributes=attributes.get(path, {}),
            )
            if path:
                parent, _, name = path.rpartition(".")
                at(parent).children[name] = nodes[path]
        return nodes[path]

    at("")
    for full, tensor in tensors.items():
        path, _, name = full.rpartition(".")
        node = at(path)
        (node.buffers if full in buffers else node.parameters)[name] = tensor
    return nodes[""]


def stability_encoder() -> Node:
    """Encoder of EDM2's networks of latents, with the published numbers."""
    std = np.float32([4.17, 4.62, 3.71, 3.28])
    scale = np.float32(0.5) / std
    bias = np.float32(0) - np.float32([5.81, 3.25, 0.12, -2.15]) * scale
    given = {"vae_name": "stabilityai/sd-vae-ft-mse", "scale": scale, "bias": bias}
    return Node(
        "StabilityVAEEncoder", attributes={**given, "batch_size": 8, "_vae": None}, is_module=False
    )


def write_persistent(
    path: Path,
    net: Node,
    style: str = "edm2",
    *,
    encoder: Node | None = None,
    loss_fn: Node | None = None,
    dtype: torch.dtype | None = None,
    source: str = SOURCE,
    **more: Any,
) -> Path:
    """Write a file as one of the repositories does.

    Args:
        path: where.
        net: the network, entry `ema`.
        style: "edm" (plain dictionaries of old torch, float32, numpy 1), "edm2" (EasyDict,
            float16, numpy 1) or "edm2_scm" (EasyDict, float16, numpy 2).
        encoder: of EDM2 and edm2_sCM; None for the one of images.
        loss_fn: the loss; None for EDM's. A student's holds a copy of its whole teacher in
            `init_kwargs`.
        dtype: of parameters and buffers; None for that of the style.
        source: source code of all objects.
        more: further entries, or others in place of those.

    Returns:
        The path.
    """
    dtype = dtype or (torch.float32 if style == "edm" else torch.float16)
    numbers = {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}
    loss_fn = loss_fn or Node("EDMLoss", attributes=numbers, is_module=False)
    encoder = encoder or Node("StandardRGBEncoder", is_module=False)
    names = {"class_name": "training.dataset.ImageFolderDataset", "path": "data.zip"}
    make = _Maker(dtype, source, OrderedDict if style == "edm" else dict)
    ema, loss, code = (make(each) for each in (net, loss_fn, encoder))
    if style == "edm":
        rest = {"loss_fn": loss, "augment_pipe": None, "dataset_kwargs": dict(names)}
        content = {"ema": ema, **rest, **more}
    else:
        head = {"encoder": code, "dataset_kwargs": EasyDict(names)}
        content = EasyDict({**head, "loss_fn": loss, "ema": ema, **more})
    path.write_bytes(dumped(content, old_numpy=style != "edm2_scm"))
    return path


def _reconstruct_persistent_obj(meta):
    raise AssertionError("not ours to run")


def scalar(*_):
    raise AssertionError("not ours to run")


def _reconstruct(*_):
    raise AssertionError("not ours to run")


class EasyDict(dict):
    """Named as that of dnnlib."""


class Persistent:
    """An object that reduces itself as those of the repositories do."""

    def __init__(self, class_name, state, source=SOURCE, version=6):
        self.meta = {"type": "class", "version": version, "module_src": source}
        self.meta |= {"class_name": class_name, "state": state}

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,), None


@dataclass
class _Maker:
    dtype: torch.dtype
    source: str
    mapping: type

    def __call__(self, node):
        if not isinstance(node, Node):
            return node
        if node.class_name in CONTAINERS:
            container = CONTAINERS[node.class_name]()
            vars(container)["_modules"] = self.children(node)
            return container
        state = dict(vars(torch.nn.Module())) if node.is_module else {}
        if node.is_module:
            state = {key: self.mapping() if value == {} else value for key, value in state.items()}
            parameters = {
                name: torch.nn.Parameter(self.cast(value), False)
                if isinstance(value, Tensor)
                else value  # None, or what a test plants
                for name, value in node.parameters.items()
            }
            buffers = {name: self.cast(value) for name, value in node.buffers.items()}
            state["_parameters"], state["_buffers"] = map(self.mapping, (parameters, buffers))
            state["_modules"] = self.children(node)
        given = {name: self(value) for name, value in node.init_kwargs.items()}
        state |= {**node.attributes, "_init_args": (), "_init_kwargs": given}
        return Persistent(node.class_name, state, self.source)

    def children(self, node):
        return self.mapping({name: self(child) for name, child in node.children.items()})

    def cast(self, value):
        if not isinstance(value, Tensor):
            return value
        return value.detach().to(self.dtype if value.is_floating_point() else value.dtype).clone()


STAND_INS = {
    "torch_utils.persistence": [_reconstruct_persistent_obj],
    "dnnlib.util": [EasyDict],
    "numpy.core.multiarray": [scalar, _reconstruct],
}


class _Pickler(pickle.Pickler):
    """Pickler that writes the names of numpy 1."""

    def reducer_override(self, obj):
        if isinstance(obj, np.generic):
            return scalar, obj.__reduce__()[1]
        if isinstance(obj, np.ndarray):
            return (_reconstruct, *obj.__reduce__()[1:])
        return NotImplemented


def dumped(content: Any, old_numpy: bool = True) -> bytes:
    """Bytes of a pickle that names functions of repositories that are not installed here."""
    modules = {"torch_utils": types.ModuleType("torch_utils"), "dnnlib": types.ModuleType("dnnlib")}
    for name, objects in STAND_INS.items():
        modules[name] = types.ModuleType(name)
        for each in objects:
            each.__module__ = name
            setattr(modules[name], each.__name__, each)
    written = io.BytesIO()
    with mock.patch.dict(sys.modules, modules):
        (_Pickler if old_numpy else pickle.Pickler)(written, protocol=4).dump(content)
    return written.getvalue()
