# SPDX-License-Identifier: Apache-2.0
"""Floor 2: the student's derivative along the ODE."""

from scm_lightning.autodiff.computer import TangentComputer, computer_of
from scm_lightning.autodiff.jvp_attention import attention
from scm_lightning.autodiff.methods import (
    DualArithmetic,
    FiniteDifference,
    ForwardMode,
    MethodName,
    TangentMethod,
    TwoPasses,
)

__all__ = [
    "DualArithmetic",
    "FiniteDifference",
    "ForwardMode",
    "MethodName",
    "TangentComputer",
    "TangentMethod",
    "TwoPasses",
    "attention",
    "computer_of",
]
