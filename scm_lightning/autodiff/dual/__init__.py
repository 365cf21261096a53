# SPDX-License-Identifier: Apache-2.0
"""Dual numbers and their table of rules; importing the rules fills the table."""

from scm_lightning.autodiff.dual import (  # noqa: F401
    attention_rules,
    elementwise_rules,
    layer_rules,
    linear_rules,
)
from scm_lightning.autodiff.dual.number import RULES, Dual, TangentError, fallback_calls, is_dual

__all__ = ["RULES", "Dual", "TangentError", "fallback_calls", "is_dual"]
