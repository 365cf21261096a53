# SPDX-License-Identifier: Apache-2.0
"""Networks written with torch's own parts and with habits of other people's code."""

import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from foreign_adapter import Network
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

TOKENS, WIDTH = 6, 16


class Tokens(nn.Module):
    """Tokens of 4 numbers, plus the time, through a body and back."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.enter, self.body, self.leave = nn.Linear(4, WIDTH), body, nn.Linear(WIDTH, 4)
        self.time = nn.Linear(2, WIDTH)

    def forward(self, u, t, labels=None, guidance=None):
        time = self.time(torch.stack([t.cos(), t.sin()], -1))
        return self.leave(self.body(self.enter(u) + time[:, None]))


class Images(nn.Module):
    """Images of 2 channels, plus the time, through a body of 8 channels and back."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.enter, self.body = nn.Conv2d(2, 8, 3, padding=1), body
        self.leave, self.time = nn.Conv2d(8, 2, 3, padding=1), nn.Linear(2, 8)

    def forward(self, u, t, labels=None, guidance=None):
        time = self.time(torch.stack([t.cos(), t.sin()], -1))
        return self.leave(self.body(self.enter(u) + time[:, :, None, None]))


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Dropout(0.1), nn.Linear(24, WIDTH))


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1))


def perceptrons():
    return Tokens(nn.Sequential(perceptron(), perceptron()))


def transformer_encoder():
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, dropout=0.1, batch_first=True)
    return Tokens(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


class _SelfAttention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **options)

    def forward(self, x):
        return x + self.attention(x, x, x, need_weights=False)[0]


def multihead_attention():
    return Tokens(_SelfAttention(dropout=0.1, add_bias_kv=True))


class _EinopsAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Conv2d(8, 24, 1)
        self.fold = Rearrange("b (h p) (w q) c -> b c (h w) p q", h=3, w=3)

    def forward(self, x):
        q, k, v = rearrange(self.qkv(x), "b (n h c) x y -> n b h (x y) c", n=3, h=2)
        weights = torch.einsum("bhic,bhjc->bhij", q, k / 2.0).softmax(-1)
        out = rearrange(weights @ v, "b h (x y) c -> b x y (h c)", x=x.shape[-2])
        return x + rearrange(self.fold(out), "b c (h w) p q -> b c (h p) (w q)", h=3)


def einops_attention():
    return Images(_EinopsAttention())


class _ComplexRotation(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)
        angle = torch.arange(TOKENS)[:, None] * 10.0 ** -torch.arange(WIDTH // 2)
        self.register_buffer("angle", angle)

    def forward(self, x):
        turn = torch.polar(torch.ones_like(self.angle), self.angle)
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        keys = torch.view_as_real(pairs * turn).flatten(-2)
        return x + (keys @ keys.mT / WIDTH**0.5).softmax(-1) @ self.mix(x)


def complex_rope():
    return Tokens(_ComplexRotation())


def batch_norm():
    return Images(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.SiLU()))


class _Checkpointed(nn.Module):
    def __init__(self, body, use_reentrant):
        super().__init__()
        self.inner, self.use_reentrant = body, use_reentrant

    def forward(self, x):
        return x + checkpoint(self.inner, x, use_reentrant=self.use_reentrant)


def checkpoint_reentrant():
    return Tokens(nn.Sequential(perceptron(), _Checkpointed(perceptron(), True)))


def checkpoint_not_reentrant():
    return Tokens(nn.Sequential(perceptron(), _Checkpointed(perceptron(), False)))


def compiled_block():
    inner = nn.Sequential(nn.Linear(WIDTH, 24), nn.SiLU(), nn.Linear(24, WIDTH))
    return Tokens(torch.compile(inner, backend="aot_eager"))


class _MagnitudeConv(nn.Module):
    """A weight of unit norm, as in EDM2: normalized in use, and written back while training."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 3))

    def normalized(self) -> Tensor:
        weight = self.weight
        size = weight.flatten(1).norm(dim=1)[:, None, None, None] / weight[0].numel() ** 0.5
        return weight / (size + 1e-4)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.weight.copy_(self.normalized())
        weight = self.normalized() / self.weight[0].numel() ** 0.5
        return nn.functional.conv2d(x, weight.to(x.dtype), padding=1)


def edm2_weights():
    return Images(nn.Sequential(_MagnitudeConv(8), nn.SiLU(), _MagnitudeConv(8)))


def weight_norm():
    body = convolutions()
    parametrizations.weight_norm(body[0])
    parametrizations.weight_norm(body[2])
    return Images(body)


def spectral_norm():
    body = convolutions()
    parametrizations.spectral_norm(body[0])
    nn.utils.spectral_norm(body[2])  # the older one, by a hook
    return Images(body)


class _Doubled(torch.autograd.Function):
    """A gradient other than the derivative: it is what trains."""

    @staticmethod
    def forward(ctx, x):
        return 1.5 * x

    @staticmethod
    def backward(ctx, gradient):
        return 3.0 * gradient


class _CustomGradient(nn.Module):
    def forward(self, x):
        return _Doubled.apply(x)


def custom_function():
    return Tokens(nn.Sequential(perceptron(), _CustomGradient(), perceptron()))


class _InPlace(nn.Module):
    """Habits: a skip that is added to in place, a buffer filled by slices, padding with ones."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(8, 8, 3), nn.SiLU(inplace=True)

    def forward(self, x):
        skip = x
        x = self.act(self.conv(nn.functional.pad(x, (1, 1, 1, 1), value=1.0)))
        out = torch.zeros_like(skip)
        out[:, :4] = x[:, :4]
        out[:, 4:] = x[:, 4:].flip(-1)
        out += skip
        return out


def in_place():
    return Images(_InPlace())


def recurrent():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

        def forward(self, x):
            return self.gru(x)[0]

    return Tokens(Last())


_TOKENS, _IMAGE = (TOKENS, 4), (2, 6, 6)
ALL = ("float64", "float32", "bf16")
TORCH = {
    "nn.TransformerEncoder": Network(transformer_encoder, _TOKENS, modes=ALL),
    "nn.MultiheadAttention": Network(multihead_attention, _TOKENS),
    "nn.GRU": Network(recurrent, _TOKENS),
    "einops attention": Network(einops_attention, _IMAGE),
    "complex RoPE": Network(complex_rope, _TOKENS),
    "BatchNorm, train mode": Network(batch_norm, _IMAGE),
    "checkpoint, reentrant": Network(checkpoint_reentrant, _TOKENS),
    "checkpoint, not reentrant": Network(checkpoint_not_reentrant, _TOKENS),
    "torch.compile'd block": Network(compiled_block, _TOKENS),
    "EDM2's weight norm": Network(edm2_weights, _IMAGE, modes=ALL),
    "weight_norm": Network(weight_norm, _IMAGE),
    "spectral_norm, both kinds": Network(spectral_norm, _IMAGE),
    "autograd.Function": Network(custom_function, _TOKENS),
    "in-place habits": Network(in_place, _IMAGE),
}
