# SPDX-License-Identifier: Apache-2.0
"""Import of a CUDA build of torchvision beside a CPU build of torch.

torch-fidelity (extra `fid`) needs torchvision, and the package index has only its CUDA build.
Beside a CPU torch that build cannot load its compiled operators: its import fails, and with it the
import of torchmetrics and of lightning. Declaring the two operators that its Python part registers
shapes for is enough: everything in Python then works, and the operators themselves, if called, say
that the extension is missing. Imported for its effect, before lightning, by every floor that needs
it.
"""

import importlib
import importlib.util
import sys

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[torch.library.Library] = []  # a schema lives as long as its library object


def make_torchvision_importable() -> None:
    """Import torchvision if it is installed, declaring its operators if that is what it lacks."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(name + _BOXES)  # type: ignore[no-untyped-call]
        _libraries.append(library)
        importlib.import_module("torchvision")


make_torchvision_importable()
