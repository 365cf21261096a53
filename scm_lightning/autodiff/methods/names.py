# SPDX-License-Identifier: Apache-2.0
"""Short names of the tangent methods with their usual options, for configurations and messages."""

from typing import Literal

from scm_lightning.autodiff.methods.base import TangentMethod
from scm_lightning.autodiff.methods.dual_arithmetic import DualArithmetic
from scm_lightning.autodiff.methods.finite_difference import FiniteDifference
from scm_lightning.autodiff.methods.forward_mode import ForwardMode, TwoPasses

MethodName = Literal["dual", "dual_checkpoint", "func", "two_pass", "finite_difference"]

BY_NAME: dict[MethodName, TangentMethod] = {
    "dual": DualArithmetic(),
    "dual_checkpoint": DualArithmetic(checkpoint=True),
    "func": ForwardMode(),
    "two_pass": TwoPasses(),
    "finite_difference": FiniteDifference(),
}


def name_of(method: TangentMethod) -> str:
    """The short name of a method, or what it prints as."""
    return next((name for name, known in BY_NAME.items() if known == method), repr(method))
