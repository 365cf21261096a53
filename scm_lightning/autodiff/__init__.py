# SPDX-License-Identifier: Apache-2.0
"""Floor 2: how the student's derivative along the ODE is computed."""

from scm_lightning.autodiff.computer import TangentComputer
from scm_lightning.autodiff.jvp_attention import attention
from scm_lightning.autodiff.methods import (
    DualArithmetic,
    FiniteDifference,
    ForwardMode,
    TangentMethod,
    TwoPasses,
)

__all__ = [
    "DualArithmetic",
    "FiniteDifference",
    "ForwardMode",
    "TangentComputer",
    "TangentMethod",
    "TwoPasses",
    "attention",
]
