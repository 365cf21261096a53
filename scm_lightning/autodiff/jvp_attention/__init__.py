# SPDX-License-Identifier: Apache-2.0
"""Attention with a forward derivative whose memory is linear in the number of tokens."""

from scm_lightning.autodiff.jvp_attention.functional import attention
from scm_lightning.autodiff.jvp_attention.fused import fused_attention_with_tangent
from scm_lightning.autodiff.jvp_attention.primal import attention_with_lse
from scm_lightning.autodiff.jvp_attention.tangent import attention_tangent

__all__ = ["attention", "attention_tangent", "attention_with_lse", "fused_attention_with_tangent"]
