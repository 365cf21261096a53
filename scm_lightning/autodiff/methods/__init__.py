# SPDX-License-Identifier: Apache-2.0
"""The ways to take the derivative of F along the ODE, one class each."""

from scm_lightning.autodiff.methods.base import Point, TangentMethod, same_random_numbers, widened
from scm_lightning.autodiff.methods.dual_arithmetic import DualArithmetic
from scm_lightning.autodiff.methods.finite_difference import FiniteDifference
from scm_lightning.autodiff.methods.forward_mode import ForwardMode, TwoPasses
from scm_lightning.autodiff.methods.names import BY_NAME, MethodName, name_of

__all__ = [
    "BY_NAME",
    "DualArithmetic",
    "FiniteDifference",
    "ForwardMode",
    "MethodName",
    "Point",
    "TangentMethod",
    "TwoPasses",
    "name_of",
    "same_random_numbers",
    "widened",
]
