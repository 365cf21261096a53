# SPDX-License-Identifier: Apache-2.0
"""Tensors of other makers' classes beside dual numbers: exact, or refused by name."""

import pytest
import torch
from torch import nn

from scm_lightning.autodiff.dual import DualNumbers, TangentError


def dual(f, x, tx):
    with DualNumbers() as level:
        return level.part(f(level.join(x.view_as(x), tx)))


class Logged(torch.Tensor):
    """Handles torch's functions itself, and does something else."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
        return out * 2 if func is torch.sin else out


class Weight(nn.Parameter):
    pass


def masked(x):
    mask = torch.ones(3, 4).bool()
    return torch.masked.masked_tensor(x, mask).sin().sum().to_tensor(0.0)


def nested(x):
    return torch.nested.as_nested_tensor([x[0], x[1]]).sin().to_padded_tensor(0.0)


def jagged(x):
    made = torch.nested.as_nested_tensor([x, x], layout=torch.jagged)
    return made.sin().to_padded_tensor(0.0)


def distributed(x):
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(x).sin().to_local()


FOREIGN = {
    "own functions, constant": (
        lambda x: torch.sin(torch.ones(4).double().as_subclass(Logged)) * x.sum(),
        0,
    ),
    "own functions": (
        lambda x: torch.add(x, torch.ones(4).double().as_subclass(Logged)),
        TangentError,
    ),
    "like a tangent": (lambda x: (x > 0).to(x) * x + torch.ones(4, 3).view_as(x) * x, 0),
    "made of a tangent": (lambda x: x.as_subclass(Logged).sin(), TangentError),
    "memory of a tangent": (lambda x: torch.empty(0).double().set_(x), TangentError),
    "masked": (masked, TypeError),
    "nested": (nested, TangentError),
    "jagged": (jagged, TangentError),
    "distributed": (distributed, (TangentError, ValueError, RuntimeError)),
    "a parameter's own class": (lambda x: x * Weight(torch.ones(4)), 0),
    "sparse constant": (lambda x: torch.sparse.mm(torch.eye(3).to(x).to_sparse(), x), 0),
    "sparse, row by row": (lambda x: torch.eye(3).to(x).to_sparse_csr() @ x, (0, TangentError)),
    "sparse itself": (lambda x: (x.to_sparse() * 2).to_dense().sin(), (0, TangentError)),
    "transform": (lambda x: torch.vmap(torch.sin)(x), TangentError),
    "foreach": (lambda x: torch._foreach_add([x, x], 1.0)[1].sin(), (0, TangentError)),
    "foreach in place": (lambda x: torch._foreach_mul_([x * 1], 2.0), TangentError),
    "statistics in place": (
        lambda x: torch.ops.aten._native_batch_norm_legit(
            x, None, None, torch.zeros(4).to(x), torch.ones(4).to(x), True, 0.1, 1e-5
        )[0],
        TangentError,
    ),
    "comparison with out=": (lambda x: torch.gt(x, 0.0, out=x * 1), TangentError),
    "rounding with out=": (lambda x: torch.floor(torch.ones(3, 4).to(x), out=x * 1), TangentError),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.filterwarnings("ignore")
def test_foreign_tensors_are_exact_or_refused_by_name(randn, name):
    f, expected = FOREIGN[name]
    x, tx = randn(3, 4), randn(3, 4)
    expected = expected if isinstance(expected, tuple) else (expected,)
    errors = tuple(each for each in expected if each)
    try:
        with torch.no_grad():
            value, tangent = dual(f, x, tx)
    except errors:
        return
    assert 0 in expected, f"{name} passed: {tangent}"
    with torch.no_grad():
        h = 1e-5
        slope = (f(x + h * tx) - f(x - h * tx)) / (2 * h)
    torch.testing.assert_close(value, f(x))
    torch.testing.assert_close(tangent, slope, rtol=1e-5, atol=1e-6)
