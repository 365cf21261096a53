# SPDX-License-Identifier: Apache-2.0
"""Dual numbers and their table of rules; importing the rules fills the table."""

from scm_lightning.autodiff.dual import (  # noqa: F401
    attention_rules,
    elementwise_rules,
    layer_rules,
    linear_rules,
)
from scm_lightning.autodiff.dual.carriers import (
    Dual,
    TangentError,
    is_dual,
    plain,
    primal_of,
    tangent_of,
)
from scm_lightning.autodiff.dual.forward_mode import fallback_calls
from scm_lightning.autodiff.dual.numbers import DualNumbers
from scm_lightning.autodiff.dual.rules import RULES
from scm_lightning.autodiff.dual.traced import Traced

__all__ = [
    "RULES",
    "Dual",
    "DualNumbers",
    "TangentError",
    "Traced",
    "fallback_calls",
    "is_dual",
    "plain",
    "primal_of",
    "tangent_of",
]
