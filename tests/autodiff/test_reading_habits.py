# SPDX-License-Identifier: Apache-2.0
"""Code that looks at a tensor or leaves torch, on dual numbers: branches, numbers, randomness."""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import pytest
import torch
from habit_check import Habits
from torch import Tensor
from torch.nn import functional as nnf

habits = Habits()


@habits.function()
def branches_on_being_a_tensor(x):
    if isinstance(x, Tensor) and torch.is_tensor(x) and not isinstance(x, torch.nn.Parameter):
        return x.sin()
    return x * 100


@habits.function()
def as_tensor_and_clone(x):
    return torch.as_tensor(x).sin() + torch.clone(x) + torch.asarray(x) ** 2


@habits.function()
def branch_on_values(x):
    y = x.exp() if x.sum() > 0 else x.sin()
    if bool((x > 10).any()) or torch.isnan(x).any():
        y = y * 100
    return y[x[:, 0].argsort()]


@habits.function()
def noise_like_it(x):
    return (
        x + torch.randn_like(x) * torch.rand_like(x).type_as(x) + torch.bernoulli(x.sigmoid() * 0)
    )


@habits.function(expect="exact refused")
def bits_of_a_number(x):
    return (x.view(torch.int64) >> 52).double() + x


@habits.function(expect="refused")
def through_numpy(x):
    with torch.no_grad():  # numpy() needs a tensor without a graph
        return torch.from_numpy((x * 1).numpy() ** 2)


@habits.function(expect="refused")
def through_an_array_function(x):
    with torch.no_grad():
        return torch.as_tensor(np.asarray(x * 1) ** 2)


@habits.function(expect="refused")
def through_item(x):
    return torch.ones(3) * x.sum().item()


@habits.function(expect="refused")
def through_float(x):
    return torch.ones(3) * float(x.sum())


@habits.function(expect="refused")
def through_tolist(x):
    return torch.tensor(x.tolist())


@habits.function(expect="exact refused")
def new_tensor_of_numbers(x):
    return torch.tensor([x[0, 0], 2.0]), x.new_tensor(x)


@habits.function(expect="refused")
def through_out(x):
    with torch.no_grad():
        out = torch.empty(3, 4, dtype=x.dtype)
        torch.sin(x, out=out)
    return out


@habits.function()
def printing_and_shapes(x):
    text = f"{x} {x.shape} {x.dtype} {x.device} {x.requires_grad} {x!r} {x.sum():.3f}"
    assert text, x.element_size()
    assert len(x) == x.size(0) == x.shape[0] == x.stride(0) - 1
    assert x.dim() == x.ndim == 2
    assert x.is_floating_point()
    assert not torch.is_complex(x)
    return x.reshape(x.numel(), -1).sin()


@habits.function()
def iteration(x):
    rows = [row * index for index, row in enumerate(x)]
    first, *rest = x
    return torch.stack(rows), sum(rest) + first, [*x.unbind(1)], dict(zip("abc", x, strict=True))


@lru_cache
def frequencies(count):
    return torch.exp(-torch.arange(count, dtype=torch.float64))


@habits.function((3,))
def cached_frequencies(t):
    first = (t[:, None] * frequencies(4)).sin()
    assert type(frequencies(4)) is Tensor
    return first + (t[:, None] * frequencies(4)).cos()


@habits.function((3, 4), (4,))
def returned_unchanged(x, y):
    a, b = torch.broadcast_tensors(x, y)
    return (
        a * b,
        torch.atleast_1d(y) * 2,
        torch.atleast_2d(x, y),
        y.contiguous(),
        y.to(x),
        y.expand(4),
    )


@habits.function()
def dropout_in_training(x):
    return (
        nnf.dropout(x, 0.4),
        nnf.dropout(x, 0.3, training=False),
        nnf.alpha_dropout(x, 0.2, training=True),
    )


@habits.function()
def random_numbers_of_its_own(x):
    return x * torch.randn(4).double() + torch.rand(3, 1), x[:, torch.randperm(4)]


@habits.function(expect="refused")
def vectorized_inside(x):
    """Its wrappers hide what they hold, so every transform of torch.func is refused."""
    return torch.vmap(lambda row: (row * row.sum()).sin())(x)


@habits.function()
def gradient_mode_switched(x):
    with torch.no_grad():
        scale = x.norm(dim=1, keepdim=True)
    with torch.enable_grad():
        return x / scale


@habits.function()
def class_compared_with_tensor(x):
    return 2 * x if type(x) == torch.Tensor else 3 * x  # noqa: E721


@habits.function(expect="refused")
def number_by_number(x):
    return x * torch.tensor([row.mean() for row in x])[:, None]


@habits.function(expect="refused")
def in_another_thread(x):
    with ThreadPoolExecutor(1) as pool:
        return x + pool.submit(torch.sin, x).result()


@habits.function(expect="refused")
def backward_inside(x):
    h = x * 1 if x.requires_grad else (x * 1).requires_grad_()
    h.retain_grad()
    h.pow(3).sum().backward()
    return x + h.grad


@habits.function(expect="refused")
def backward_by_the_module(x):
    h = x * 1 if x.requires_grad else (x * 1).requires_grad_()
    torch.autograd.backward([h.pow(3).sum()], inputs=[h])
    return x + h.grad


@pytest.mark.parametrize("name", habits)
@pytest.mark.filterwarnings("ignore")
def test_habit(name):
    habits.check(name)
