# SPDX-License-Identifier: Apache-2.0
"""What breaks the tangent is named, and so are the methods that work on that network."""

import copy

import pytest
import torch
from test_computer import inputs
from test_repaired_jvp import single
from tiny import derive

from scm_lightning.core import expand_time


class Vectorized(torch.nn.Module):
    """A transform of torch.func inside the network."""

    def forward(self, x):
        return torch.vmap(torch.exp)(x)


class Opaque(torch.nn.Module):
    """An operation of the user's own, as a kernel would be registered."""

    def forward(self, x):
        return torch.ops.scm_test.opaque(x)


@torch.library.custom_op("scm_test::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


class Wrapped(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Tanh(), inner)])

    def forward(self, u, t, labels=None, guidance=None):
        return self.blocks[0](u * expand_time(t, u))


class Stateful(torch.nn.Module):
    """Draws random numbers and may count in a buffer, before a transform of torch.func."""

    def __init__(self, is_counting):
        super().__init__()
        self.is_counting = is_counting
        self.register_buffer("calls", torch.zeros(()))
        self.gain = torch.nn.Parameter(torch.zeros(2, 1, 1))  # says zero, as fresh networks do

    def forward(self, u, t, labels=None, guidance=None):
        if self.is_counting:
            self.calls += 1  # which torch.func.jvp refuses
        h = torch.nn.functional.dropout(u * expand_time(t, u), 0.2)
        return torch.vmap(torch.sin)(h + u) * self.gain


class Broken(torch.nn.Module):
    """Has no derivative that any method could take."""

    def forward(self, u, t, labels=None, guidance=None):
        if len(u) < 5:
            raise RuntimeError("it takes the whole batch")
        return torch.ops.scm_test.opaque(u)


VECTORIZED = r"in module blocks\.0\.1 \(Vectorized\): the tangent cannot follow exp inside"
OPAQUE = r"in module blocks\.0\.1 \(Opaque\): the operation opaque (lost|has no)"


@pytest.mark.parametrize(
    ("inner", "message", "working"),
    [
        (Vectorized(), VECTORIZED, "two_pass and func exactly, finite_difference to about 5e-3"),
        # Forward mode gives a derivative of zero, without a word.
        (Opaque(), OPAQUE, "this network works with finite_difference to about 5e-3"),
    ],
)
@pytest.mark.parametrize("method", ["dual", "dual_checkpoint"])
def test_what_breaks_the_tangent_and_what_works_is_named(randn, inner, message, working, method):
    """Module, operation, and the methods that take the network; they do."""
    given, network = inputs(randn), Wrapped(inner)
    with pytest.raises(ValueError, match=message) as caught:
        derive(method, network, given)
    assert str(caught.value).endswith(working)
    found = {
        name: derive(name, network, given)[1]
        for name in ("two_pass", "func", "finite_difference")
        if name in working
    }
    for derivative in found.values():
        torch.testing.assert_close(derivative, found["finite_difference"], rtol=1e-4, atol=1e-4)
    assert float(found["finite_difference"].abs().max()) > 1e-3


@pytest.mark.parametrize("is_counting", [False, True])
@pytest.mark.parametrize("precision", ["float64", "bfloat16 weights", "autocast"])
def test_finding_the_methods_that_work_leaves_no_trace(randn, precision, is_counting, monkeypatch):
    """Weights, buffers, gradients, modes and random numbers, of a network that says zero."""
    network, given = Stateful(is_counting).train(), inputs(randn)
    given = given if precision == "float64" else single(given)
    network.to(torch.float64 if precision == "float64" else torch.float32)
    if precision == "bfloat16 weights":
        network.gain.data = network.gain.data.bfloat16()

    def left_behind(message):
        ours = copy.deepcopy(network)
        ours.gain.grad = torch.ones_like(ours.gain)
        torch.manual_seed(2)
        half = precision == "autocast"
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=half),
            pytest.raises(ValueError, match=message),
        ):
            derive("dual", ours, given)
        assert ours.gain.requires_grad
        return [*ours.state_dict().values(), ours.gain.grad, torch.get_rng_state()]

    exact = "" if is_counting else "two_pass and func exactly, "
    found = left_behind(f"works with {exact}finite_difference to about 5e-3")
    monkeypatch.setattr("scm_lightning.autodiff.computer.advice", lambda *args: "")
    for one, other in zip(found, left_behind("cannot follow sin"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_network_that_no_method_takes_is_refused_all_the_same(randn):
    with pytest.raises(ValueError, match=r"opaque .* none of the other tangent methods takes this"):
        derive("dual", Broken(), inputs(randn))


def test_an_output_without_a_tangent_is_refused(randn):
    with pytest.raises(ValueError, match=r"in Lost: the network lost the tangent"):
        derive("dual", Lost(), inputs(randn))


class Lost(torch.nn.Module):
    def forward(self, u, t, labels=None, guidance=None):
        return torch.zeros(u.shape)
