# SPDX-License-Identifier: Apache-2.0
"""Functions with a derivative of their own, on dual numbers."""

import numpy as np
import pytest
import torch
from habit_check import Habits
from torch.autograd import Function
from torch.autograd.function import once_differentiable

habits = Habits()


class OldSwish(Function):
    """Forward and context in one; what it gives back by hand."""

    @staticmethod
    def forward(ctx, x):
        y = x * torch.sigmoid(x)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (y + s * (1 - y))


class ScaledBackward(Function):
    """Its backward is three times the derivative: plain training uses that, and so must duals."""

    @staticmethod
    def forward(x, scale):
        return x * scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return 3 * ctx.scale * grad, None


class NumpySine(Function):
    """Leaves torch in forward, with both derivatives written down."""

    @staticmethod
    def forward(x):
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * ctx.saved_tensors[0].cos()


class OwnJvp(Function):
    """Torch inside, with a forward derivative of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x.exp()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].exp()

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * ctx.saved_tensors[0].exp()


class Reverse(Function):
    """Identity that returns its input; the gradient is reversed."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return -grad


class SineAndCosine(Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x.sin() * y, x.cos()

    @staticmethod
    def backward(ctx, a, b):
        x, y = ctx.saved_tensors
        return a * x.cos() * y - b * x.sin(), a * x.sin()


class SortedRows(Function):
    @staticmethod
    def forward(ctx, x):
        values, order = x.sort(dim=1)
        ctx.mark_non_differentiable(order)
        ctx.save_for_backward(order)
        return values, order

    @staticmethod
    def backward(ctx, grad, _):
        (order,) = ctx.saved_tensors
        return torch.zeros_like(grad).scatter(1, order, grad)


class DoubleInPlace(Function):
    @staticmethod
    def forward(ctx, x):
        x.mul_(2.0)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class Unused(Function):
    """Has no gradient for its second input, and keeps a number."""

    @staticmethod
    def forward(ctx, x, y, power):
        ctx.power = power
        ctx.save_for_backward(x)
        return x**power + y

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.power * ctx.saved_tensors[0] ** (ctx.power - 1), None, None


@habits.function()
def old_style_function(x):
    return OldSwish.apply(OldSwish.apply(x).sin())


@habits.function()
def function_with_setup_context(x):
    return ScaledBackward.apply(x.sin(), 0.7) * x


@habits.function(expect="exact refused")
def function_through_numpy_with_its_own_jvp(x):
    return NumpySine.apply(x * 2)


@habits.function()
def function_with_its_own_jvp(x):
    return OwnJvp.apply(x.sin())


@habits.function()
def function_that_returns_its_input(x):
    return Reverse.apply(x) * 2 + x


@habits.function((3, 4), (3, 4), expect="exact refused")
def function_of_two_outputs(x, y):
    """Refused with one dual argument: cos(x) of the constant x has a gradient and no tangent.

    Nothing tells it from an output that lost its tangent.
    """
    a, b = SineAndCosine.apply(x, y)
    return a * b, SineAndCosine.apply(y.exp(), x)[0]


@habits.function()
def function_with_an_output_without_derivative(x):
    values, order = SortedRows.apply(x)
    return values.sin(), order


@habits.function(expect="exact refused")
def function_in_place(x):
    y = x * 1
    return DoubleInPlace.apply(y) * y


@habits.function((3, 4), (3, 4))
def function_without_a_gradient_for_an_input(x, y):
    return Unused.apply(x, y.sin(), 3)


@pytest.mark.parametrize("name", habits)
@pytest.mark.filterwarnings("ignore")
def test_habit(name):
    habits.check(name)
