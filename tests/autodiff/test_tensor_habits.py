# SPDX-License-Identifier: Apache-2.0
"""Tensor code as people write it, on dual numbers: layers, complex numbers, containers."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from habit_check import Habits
from torch import Tensor
from torch.nn import functional as nnf

habits = Habits()


IMAGE = (2, 3, 4, 6)


@habits.function(IMAGE)
def pad_with_a_value(x):
    return nnf.pad(x, (1, 2), value=1.0) * 2, torch.constant_pad_nd(x, (1, 1), 3.0)


@habits.function(IMAGE)
def constant_pad_2d(x):
    return torch.nn.ConstantPad2d((1, 0, 2, 1), 0.7)(x)


@habits.function((2, 5, 4, 6))
def rotary_embedding_by_view_as_complex(x):
    angles = torch.outer(torch.arange(5.0), 0.3 ** torch.arange(3.0)).double()
    turn = torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn[None, :, None]).flatten(3).type_as(x)


@habits.function((2, 3), (2, 3))
def polar_of_dual_numbers(r, angle):
    z = torch.polar(r.abs() + 1, angle)
    return z, z.abs(), z.angle(), torch.complex(r, angle).conj() * z


@habits.function(IMAGE)
def filter_in_frequency(x):
    weight = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(4, 4)
    spectrum = torch.fft.rfft2(x, norm="ortho")
    return torch.fft.irfft2(
        spectrum * torch.complex(weight, 1 - weight), s=x.shape[-2:], norm="ortho"
    )


@habits.function()
def properties(x):
    z = torch.complex(x, 2 * x)
    return x.T, x.mT @ x, z.H, z.real, z.imag, z.mH, x.real


@habits.function()
def constants_like_it(x):
    filled = x.new_zeros(3, 4) + torch.zeros_like(x) + x.new_full((4,), 2.0)
    return filled * x + torch.ones_like(x), x.new_tensor([1.0, 2.0]), torch.full_like(x, 3.0)


@habits.function()
def casts(x):
    return (
        x.float().double(),
        x.to(torch.float32),
        x.to("cpu").type(torch.float64),
        x.type_as(x.float()),
    )


@habits.function((4,))
def powers_at_zero(x):
    z = x * torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=x.dtype)
    return (
        torch.pow(z, 0),
        z**0,
        z**1,
        z**2,
        torch.pow(2.0, z),
        z.pow(torch.tensor([0.0, 1, 2, 3]).double()),
    )


@habits.function((3, 4), (3, 4))
def rounding_divisions(x, y):
    y = y + 3 * y.sign()
    floors = torch.div(x, y, rounding_mode="floor") + torch.div(x, y, rounding_mode="trunc")
    return floors, x % y, x // y, 5 % y, torch.remainder(x, y), torch.fmod(x, y), 2 // y


@habits.function()
def softmax_without_a_dimension(x):
    return nnf.softmax(x), nnf.log_softmax(x)


@habits.function((3, 4), (3, 4))
def where_and_its_kin(x, y):
    return (
        x.where(x > 0, y),
        torch.where(y > 0, x, 0.0),
        torch.lerp(x, y, 0.3),
        x.masked_fill(y > 0, 7.0),
    )


@habits.function(expect="exact refused")
def complex_by_view_of_dtype(x):
    return x.view(torch.complex128) * 1j


class Pair(NamedTuple):
    mean: Tensor
    scale: Tensor


@dataclass
class Block:
    hidden: Tensor
    extra: list


@habits.function()
def nested_results(x):
    pair = Pair(x.mean(1), x.std(1))
    return Block(pair.mean.sin(), [pair, {"scale": (pair.scale**2, None)}])


@habits.function((3, 4), (3, 4))
def comparisons_and_sorting(x, y):
    values, order = x.sort(dim=1)
    top = torch.topk(y, 2)
    return (
        values,
        y.gather(1, order),
        top.values,
        torch.max(x, dim=1),
        torch.maximum(x, y),
        x.amax(),
    )


@habits.function((2, 3, 4), (2, 4, 5))
def products(x, y):
    mixed = torch.einsum("bij,bjk->bik", x, y)
    return (
        mixed,
        x @ y,
        torch.bmm(x, y),
        torch.tensordot(x, y, dims=([2], [1])),
        torch.baddbmm(mixed, x, y),
    )


@habits.function((2, 3, 4))
def einops_layouts(x):
    from einops import einsum, rearrange, reduce, repeat

    return (
        rearrange(x, "b (h w) c -> b c h w", h=3),
        repeat(x, "b n c -> b (n k) c", k=2),
        reduce(x, "b n c -> b c", "mean"),
        reduce(x, "b n c -> b", "max"),
        einsum(x, x, "b n c, b m c -> b n m"),
    )


@habits.function((2, 5, 4), (2, 5, 4), (2, 5, 4))
def attention_by_keywords(q, k, v):
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    plain = nnf.scaled_dot_product_attention(query=q, key=k, value=v)
    return plain, nnf.scaled_dot_product_attention(q, k, value=v, attn_mask=mask, scale=0.3)


@habits.function((2, 3, 6, 6), (4, 3, 3, 3), (4,))
def named_arguments(x, w, b):
    y = nnf.conv2d(input=x, weight=w, bias=b, padding=1)
    y = nnf.group_norm(input=y, num_groups=2)
    y = nnf.interpolate(input=y, size=(5, 7), mode="bilinear", align_corners=False)
    flat = torch.flatten(input=y, start_dim=1)
    return (
        torch.cat(tensors=[flat, flat.sin()], dim=1),
        torch.stack(tensors=(y, y)),
        torch.mul(input=y, other=y),
    )


@habits.function((3, 4), (3, 4))
def losses(x, y):
    return (
        nnf.mse_loss(x, target=y),
        nnf.huber_loss(x, y),
        nnf.smooth_l1_loss(input=x, target=y),
        torch.dist(x, y),
    )


@habits.function((2, 4), (5, 4))
def without_a_first_tensor(x, table):
    return (
        nnf.embedding(torch.tensor([0, 3]), table) * x,
        nnf.linear(x, table),
        nnf.bilinear(x, x, table[:, None] * x[0, :, None]),
    )


@habits.function()
def where_with_a_condition_alone(x):
    return x[torch.where(x.relu())] * 2


@pytest.mark.parametrize("name", habits)
@pytest.mark.filterwarnings("ignore")
def test_habit(name):
    habits.check(name)
