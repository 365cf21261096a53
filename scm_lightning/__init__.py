# SPDX-License-Identifier: Apache-2.0
"""Continuous-time consistency models (sCM) in PyTorch Lightning.

The public names are imported on first use, so that `scm --help` does not wait for torch.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scm_lightning.autodiff import TangentComputer
    from scm_lightning.core import (
        TimeProposal,
        TrigFlow,
        consistency_loss,
        diffusion_loss,
        normalize_tangent,
        tangent,
    )
    from scm_lightning.data import Batch
    from scm_lightning.export import Sampler, load
    from scm_lightning.modules import ConsistencyModule, DiffusionModule
    from scm_lightning.sampling import sample_consistency, sample_ode

__version__ = version("scm_lightning")

__all__ = [
    "Batch",
    "ConsistencyModule",
    "DiffusionModule",
    "Sampler",
    "TangentComputer",
    "TimeProposal",
    "TrigFlow",
    "__version__",
    "consistency_loss",
    "diffusion_loss",
    "load",
    "normalize_tangent",
    "sample_consistency",
    "sample_ode",
    "tangent",
]

_ROOMS = ("core", "autodiff", "sampling", "data", "export", "modules")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for room in _ROOMS:
            module = importlib.import_module(f"scm_lightning.{room}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module 'scm_lightning' has no attribute {name!r}")
