# SPDX-License-Identifier: Apache-2.0
"""Floor 2: how the student's derivative along the ODE is computed."""

from scm_lightning.autodiff.attention import attention
from scm_lightning.autodiff.compiled import CompiledTangents
from scm_lightning.autodiff.computer import TangentComputer

__all__ = ["CompiledTangents", "TangentComputer", "attention"]
