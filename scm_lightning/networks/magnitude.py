# SPDX-License-Identifier: Apache-2.0
r"""Parts that keep the magnitude of what goes through them: unit variance in, unit variance out.

    mp_silu(x)         = silu(x) / 0.596
    mp_sum(a, b, t)    = ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)
    mp_concat(a, b, t) = sqrt((Na + Nb) / ((1 - t)^2 + t^2)) [(1 - t) / sqrt(Na) a, t / sqrt(Nb) b]
    layers             y = x * w / ||w||, one norm per output channel, no bias
    normalize(x)       = x / sqrt(mean of x^2 + eps^2),  eps = 1e-4

EDM2 divides by ||x|| / sqrt(n) + 1e-4, which has no second derivative at x = 0; the root above is
smooth, has the same slope 1e4 there and differs by less than 1e-4 from it (ours). Networks with
EDM2's weights can take its own: `take_norm`.
The stored weights are brought back to unit variance after every optimizer step by
`normalize_weights`, never in forward: then the step size of Adam is relative to the weights, and a
forward changes nothing.
Source: Karras et al., arXiv 2312.02696 (EDM2), Sections 2.3 to 2.5 and Appendix B.
Axes: B batch, C channels, H and W pixels, n elements that a norm is taken over.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scm_lightning.core import at_least_float32

EPS = 1e-4
"""Root mean square below which `normalize` fades to zero."""


def normalize(x: Tensor, dim: int = 1) -> Tensor:
    """Scale vectors to unit mean square.

    Args:
        x: any tensor, the vectors along `dim`. (..., n, ...).
        dim: axis of the vectors.

    Returns:
        The scaled vectors, in float32 or wider: their squares leave the range of float16.

    Source: arXiv 2312.02696, Appendix B.1; smooth at zero (ours).
    """
    last = at_least_float32(x).movedim(dim, -1)
    return nn.functional.rms_norm(last, last.shape[-1:], eps=EPS**2).movedim(-1, dim)


def edm2_normalize(x: Tensor, dim: int = 1) -> Tensor:
    """Scale vectors to unit mean square as EDM2 does: eps = 1e-4 beside the root, not inside.

    Args:
        x: any tensor, the vectors along `dim`. (..., n, ...).
        dim: axis of the vectors.

    Returns:
        The scaled vectors, in float32 or wider.

    Source: arXiv 2312.02696, Appendix B.1.
    """
    x = at_least_float32(x)
    # A number far below any other, for the slope of the root at zero.
    root = (x.square().mean(dim, keepdim=True) + 1e-30).sqrt()
    return x / (root + EPS)


class Normalizing(nn.Module):
    """Layer that normalises its weights or activations, smoothly unless `take_norm` was called."""

    normalize: Callable[..., Tensor] = staticmethod(normalize)


def take_norm(network: nn.Module, norm: Callable[..., Tensor]) -> None:
    """Let every layer of a network normalise by `norm`: `normalize` or `edm2_normalize`."""
    for module in network.modules():
        if isinstance(module, Normalizing):
            module.normalize = norm


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps unit variance, 0.596^2 being E silu(x)^2 for standard normal x.

    Source: arXiv 2312.02696, Eq. 81.
    """
    return nn.functional.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Blend two independent tensors of unit variance.

    Args:
        a: weighted 1 - t.
        b: weighted t. The shape of `a`.
        t: share of `b`, in [0, 1].

    Source: arXiv 2312.02696, Eq. 88.
    """
    root = math.hypot(1 - t, t)
    return torch.add((1 - t) / root * a, b, alpha=t / root)


def mp_concat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Join channels so that both parts have their share in what a layer makes of them.

    Args:
        a: weighted 1 - t. (B, Na, ...), unit variance.
        b: weighted t. (B, Nb, ...), unit variance.
        t: share of `b`, in [0, 1].

    Returns:
        Both, of unit variance together. (B, Na + Nb, ...).

    Source: arXiv 2312.02696, Eq. 103.
    """
    Na, Nb = a.shape[1], b.shape[1]
    factor = math.sqrt(Na + Nb) / math.hypot(1 - t, t)
    return torch.cat([factor * (1 - t) / Na**0.5 * a, factor * t / Nb**0.5 * b], dim=1)


class NormalizedRows(Normalizing):
    """Layer whose weights are used with norm 1 per output channel. (O, ...)."""

    weight: nn.Parameter

    def unit_rows(self) -> Tensor:
        """Weights with norm 1 per output channel, in float32 or wider. (O, ...)."""
        rows = self.weight.flatten(1)
        unit: Tensor = self.normalize(rows) * rows.shape[1] ** -0.5
        return unit.reshape(self.weight.shape)


class MPLinear(NormalizedRows):
    """Linear layer with normalised weights, computed in float32 or wider under autocast too.

    Args:
        in_features: elements of the input.
        out_features: elements of the result.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        dtype = torch.promote_types(at_least_float32(x).dtype, self.weight.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(x.to(dtype), self.unit_rows().to(dtype))


class MPConv2d(NormalizedRows):
    """Convolution with normalised weights, zero padding and the size of its input.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        kernel_size: side of the kernel, odd. Pixels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        weight = self.unit_rows().to(self.weight.dtype)
        return nn.functional.conv2d(x, weight, padding=self.weight.shape[-1] // 2)


def normalize_weights(network: nn.Module) -> None:
    """Bring the stored weights of every normalised layer back to unit variance, in place.

    The network's output stays the same. Call it after every optimizer step, before an average
    follows the weights. Weights may be sharded over their output channels: every row
    lies on one device, and nothing is communicated.

    Args:
        network: any network; other layers are left alone.

    Source: arXiv 2312.02696, Section 2.3, forced weight normalization.
    """
    for module in network.modules():
        if isinstance(module, NormalizedRows):
            _normalize_rows(module.weight)


@torch.no_grad()
def _normalize_rows(weight: Tensor) -> None:
    """Scale every output channel's weights to unit mean square, in place. (O, ...)."""
    axes = tuple(range(1, weight.ndim))
    dtype = torch.promote_types(weight.dtype, torch.float32)
    norm = torch.linalg.vector_norm(weight, dim=axes, keepdim=True, dtype=dtype)
    root = math.prod(weight.shape[1:]) ** 0.5
    weight.mul_(root / norm.clamp_min(torch.finfo(dtype).tiny ** 0.5))
