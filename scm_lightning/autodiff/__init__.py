# SPDX-License-Identifier: Apache-2.0
"""Floor 2: how the student's derivative along the ODE is computed."""

from scm_lightning.autodiff.compiled import CompiledTangents
from scm_lightning.autodiff.computer import TangentComputer
from scm_lightning.autodiff.jvp_attention import attention

__all__ = ["CompiledTangents", "TangentComputer", "attention"]
