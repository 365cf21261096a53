# SPDX-License-Identifier: Apache-2.0
"""What the derivative of attention costs, beside torch's fused forward and its own derivative."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scm_lightning.autodiff.jvp_attention import attention_tangent, attention_with_lse

FORWARD = "SDPA forward"
MATH_LIMIT = 4096
"""Tokens beyond which torch's own derivative is left out: its memory grows with their square."""


def attention_steps(num_tokens: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Attention over one image of 4 heads of 64 channels, without gradient.

    Args:
        num_tokens: tokens L.
        device: where to compute.

    Returns:
        By name: torch's fused forward, value and derivative by ours, and by torch's `math` formula.
    """
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    shape = (1, 4, num_tokens, 64)
    generator = torch.Generator(device).manual_seed(0)

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    primals, tangents = (draw(), draw(), draw()), (draw(), draw(), draw())

    @torch.no_grad()
    def forward() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(*primals)

    @torch.no_grad()
    def ours() -> Tensor:
        o, lse = attention_with_lse(*primals)
        return attention_tangent(*primals, *tangents, o, lse)

    @torch.no_grad()
    def math() -> object:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(
                torch.nn.functional.scaled_dot_product_attention, primals, tangents
            )

    steps: dict[str, Callable[[], object]] = {FORWARD: forward, "value and tangent, ours": ours}
    if num_tokens <= MATH_LIMIT:
        steps["value and tangent, SDPA math"] = math
    return steps
