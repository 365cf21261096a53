# SPDX-License-Identifier: Apache-2.0
"""A pass leaves nothing behind. Passes in passes, in threads, after errors."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional as nnf

from scm_lightning.autodiff.dual import Dual, DualNumbers, TangentError, is_dual

Base = torch.autograd.function._SingleLevelFunction
SCRIPT_CALL = torch._C.ScriptFunction.__call__


class Cube(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return 3 * grad * ctx.saved_tensors[0] ** 2


class Broken(Cube):
    @staticmethod
    def forward(ctx, x):
        return x / (1 // 0)


def dual(f, x, tx):
    with DualNumbers() as level:
        return level.part(f(level.join(x.view_as(x), tx)))


def assert_nothing_is_left():
    assert "apply" not in vars(Base)
    assert torch._C.ScriptFunction.__call__ is SCRIPT_CALL
    assert torch._C._len_torch_function_stack() == 0
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    assert not {"as_subclass", "set_"} & vars(torch.Tensor).keys()
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert seen  # compiled functions are compiled again


@pytest.mark.filterwarnings("ignore")
def test_an_error_inside_a_pass_leaves_nothing_behind(randn):
    x = randn(3, 4)
    buffer = torch.zeros(3, 4, dtype=x.dtype)

    def network(x):
        buffer.add_(x)
        Cube.apply(x)
        raise RuntimeError("in the network")

    with pytest.raises(RuntimeError, match="in the network"):
        dual(network, x, x)
    assert type(buffer) is torch.Tensor
    assert_nothing_is_left()
    with pytest.raises(ZeroDivisionError):
        dual(Broken.apply, x, x)
    assert_nothing_is_left()


def test_a_dual_number_of_an_earlier_pass_is_a_constant(randn):
    """A module that keeps its last input, and reads it in the next pass."""
    kept = []

    def network(x):
        kept.append(x * 1)
        return x * kept[0]

    x, tx, y = randn(3, 4), randn(3, 4), randn(3, 4)
    dual(network, x, tx)
    assert is_dual(kept[0])
    value, tangent = dual(network, y, tx)
    torch.testing.assert_close(value, x * y)
    torch.testing.assert_close(tangent, x * tx)
    assert type(kept[0]) is torch.Tensor


@pytest.mark.parametrize("use", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)), torch.sin])
def test_after_the_pass_a_dual_number_is_a_plain_tensor(randn, use):
    with DualNumbers() as level:
        kept = level.join(randn(3, 4), randn(3, 4)) * 2
    assert type(kept) is Dual
    assert type(use(kept)) is torch.Tensor
    assert type(kept) is torch.Tensor
    assert not hasattr(kept, "tangent")


def test_a_pass_inside_a_pass_keeps_to_itself(randn):
    """A frozen teacher by dual numbers inside the network, with Functions and writes in both."""
    x, tx, w, tw = randn(3, 4), randn(3, 4), randn(3, 4), randn(3, 4)
    found = []

    def teacher(w):
        out = torch.zeros(3, 4, dtype=w.dtype)
        out.add_(w)
        return Cube.apply(out) * w

    def network(x):
        before = Cube.apply(x)
        found.append(dual(teacher, w, tw))
        return before * x.sin() + x.detach()

    value, tangent = dual(network, x, tx)
    torch.testing.assert_close(value, x**3 * x.sin() + x)
    torch.testing.assert_close(tangent, tx * (3 * x**2 * x.sin() + x**3 * x.cos()))
    torch.testing.assert_close(found[0], (w**4, 4 * w**3 * tw))
    assert_nothing_is_left()


def test_an_inner_pass_takes_a_detached_number_of_the_outer_and_no_other(randn):
    x, tx = randn(3, 4), randn(3, 4)

    def detached(x):
        return x * dual(torch.exp, x.detach(), tx)[0]

    _, tangent = dual(detached, x, tx)
    torch.testing.assert_close(tangent, tx * x.exp())
    with pytest.raises(TangentError, match="give the inner pass"):
        dual(lambda x: dual(torch.exp, x, tx)[0], x, tx)
    with pytest.raises(TangentError, match="in mul tangents of a pass meet those of a pass inside"):
        dual(lambda x: dual(lambda y: torch.mul(y, x), x.detach(), tx)[0], x, tx)
    read = []

    def only_read(x):  # the outer's derivative goes through the inner pass
        with DualNumbers():
            read.append(x.sin())
        return read[0] * 2

    torch.testing.assert_close(dual(only_read, x, tx)[1], 2 * tx * x.cos())


def test_passes_of_two_threads_do_not_meet(randn):
    """A pass in one thread, while another uses Functions, opens and closes passes."""
    x, tx = randn(3, 4), randn(3, 4)
    opened, done = threading.Event(), threading.Event()
    found = []

    def other():
        opened.wait(30)
        y = x.clone().requires_grad_()
        Cube.apply(y).sum().backward()
        found.append(y.grad)
        found.append(dual(Cube.apply, x, tx)[1])
        done.set()

    thread = threading.Thread(target=other)
    thread.start()

    def network(x):
        opened.set()
        assert done.wait(30)
        return Cube.apply(x)

    ours = dual(network, x, tx)[1]
    thread.join()
    torch.testing.assert_close(found[0], 3 * x**2)
    torch.testing.assert_close(found[1], 3 * x**2 * tx)
    torch.testing.assert_close(ours, 3 * x**2 * tx)
    assert_nothing_is_left()


def test_a_constant_written_after_autograd_kept_it_is_noticed(randn):
    """Autograd's own check of versions, for tensors without a gradient too."""
    w = randn(3, 4)

    def network(x):
        y = x * w
        w.mul_(2.0)
        return y

    x = randn(3, 4).requires_grad_()
    value, _ = dual(network, x, randn(3, 4))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def by_hand(x, generator):
    return x * torch.bernoulli(x.sigmoid(), generator=generator)


RANDOM = {
    "dropout": lambda x, g: nnf.dropout(x, 0.4),
    "dropout, written": lambda x, g: nn.Dropout(0.4, inplace=True)(x * 1),
    "feature dropout": lambda x, g: nnf.dropout1d(x[None], 0.4),
    "alpha dropout": lambda x, g: nnf.alpha_dropout(x, 0.4, training=True),
    "rrelu": lambda x, g: nnf.rrelu(x, training=True),
    "attention": lambda x, g: nnf.scaled_dot_product_attention(x, x, x, dropout_p=0.4),
    "gumbel": lambda x, g: nnf.gumbel_softmax(x),
    "pooling": lambda x, g: nnf.fractional_max_pool2d(x[None].repeat(1, 2, 2), 2, 4),
    "noise": lambda x, g: x * torch.randn_like(x) + torch.rand(4, generator=g),
    "generator": by_hand,
    "generator, written": lambda x, g: x * (0 * x).normal_(generator=g) + (0 * x).bernoulli_(0.5),
    "exponential": lambda x, g: x / (x * 0 + 1).exponential_(generator=g),
    "poisson": lambda x, g: x * torch.poisson(x.exp(), generator=g),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_operations_draw_what_a_plain_call_draws(randn, name):
    """Values, tangents at the same numbers, and all generators where a plain call leaves them."""
    f, x, tx = RANDOM[name], randn(3, 4), randn(3, 4)

    def state(run):
        generator = torch.Generator().manual_seed(3)
        torch.manual_seed(5)
        out = run(lambda x: f(x, generator))
        return out, torch.get_rng_state(), generator.get_state()

    plain, *states = state(lambda f: f(x))
    (value, tangent), *ours = state(lambda f: dual(f, x, tx))
    h = 1e-5
    after, *_ = state(lambda f: f(x + h * tx))
    before, *_ = state(lambda f: f(x - h * tx))
    torch.testing.assert_close(value, plain, rtol=0, atol=1e-15)
    torch.testing.assert_close(tangent, (after - before) / (2 * h), rtol=1e-5, atol=1e-7)
    for one, other in zip(ours, states, strict=True):
        assert torch.equal(one, other)


EMPTY = [
    lambda x: x.sin() * 2 + x,
    lambda x: nnf.layer_norm(x, x.shape[-1:]) if x.ndim else x,
    lambda x: torch.cat([x.reshape(-1), x.reshape(-1)]),
    lambda x: nnf.gelu(x).sum() + x.mean() * 0,
    lambda x: (x * 1).flatten().view(-1).contiguous().exp_(),
    lambda x: torch.where(x > 0, x, x.exp()),
    lambda x: torch.linalg.vector_norm(x) + x.clamp(-1, 1).sum(),
]


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0, 4)])
@pytest.mark.parametrize("f", EMPTY)
@pytest.mark.filterwarnings("ignore")
def test_numbers_without_axes_or_elements(randn, f, shape):
    x, tx = randn(*shape) if shape else randn(1)[0], randn(*shape) if shape else randn(1)[0]
    value, tangent = torch.func.jvp(lambda x: f(x) + 0, (x,), (tx,))
    ours, t_ours = dual(f, x, tx)
    torch.testing.assert_close(ours, value, equal_nan=True)
    torch.testing.assert_close(t_ours, tangent, equal_nan=True)
