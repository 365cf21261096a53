# SPDX-License-Identifier: Apache-2.0
"""Compiled tangents: the same numbers as eager ones, and no trust before a comparison."""

import copy

import pytest
import torch
from tiny import wake
from torch._subclasses.fake_tensor import FakeTensorMode

from scm_lightning.autodiff import TangentComputer
from scm_lightning.core import Bound
from scm_lightning.networks import MLP, DiT


def agree(network, shape, randn):
    """Value, derivative and gradients of the compiled computer and the eager one, and the masks."""
    x_t, dx_dt = randn(5, *shape).float(), randn(5, *shape).float()
    t, labels = torch.linspace(0.1, 1.5, 5), torch.tensor([0, 1, 2, 0, 1])
    results = []
    for computer in (TangentComputer("dual"), TangentComputer("dual", compile=True)):
        network.zero_grad()
        torch.manual_seed(4)
        F, J = computer(Bound(network, labels), x_t, t, dx_dt, sigma_data=0.7)
        F.square().sum().backward()
        results.append([F.detach(), J, *(p.grad.clone() for p in network.parameters())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)
    assert float(results[1][1].norm()) > 0.1


def test_compiled_tangents_of_an_mlp(randn, capsys):
    """In train mode: the first call, compared with the eager one, draws no more numbers."""
    network = MLP((3,), 16, 1, emb_channels=8, num_classes=3, dropout=0.4).train()
    agree(wake(network, std=0.2), (3,), randn)
    said = "compiling the tangents of MLP: the first step takes minutes\n"
    assert capsys.readouterr().out == said


@pytest.mark.slow
def test_compiled_tangents_of_a_dit(randn):
    agree(wake(DiT((1, 4, 6), 2, 16, 1, 2, num_classes=3), std=0.2), (1, 4, 6), randn)


def lost(network, F, J):
    return F, torch.zeros_like(J)


def lost_in_train_mode(network, F, J):
    return (F, torch.zeros_like(J)) if network.training else (F, J)


def without_graph(network, F, J):
    return F.detach(), J


def bent(network, F, J):
    return 1.01 * F, J


def bent_gradient(network, F, J):
    return F.detach() + 1.1 * (F - F.detach()), J


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lost, "relative difference of 1 in its derivative"),
        (lost_in_train_mode, "relative difference of 1 in its derivative"),
        (bent, "relative difference of 0.01 in F"),
        (without_graph, "parameter .* gets no gradient"),
        (bent_gradient, "the gradient of the parameter .* differs by 0.1"),
    ],
)
def test_results_that_differ_are_refused(randn, fault, message):
    """A compiled computer that loses something, as compilers do, on a network that says zero."""
    computer = TangentComputer("dual", compile=True)
    method = computer.evaluate
    network = MLP((3,), 16, 1, emb_channels=8, dropout=0.2).train()
    method.compiled = lambda f, point: fault(network, *method.eager(f, point))
    before = copy.deepcopy(network.state_dict())
    x = randn(5, 3).float()
    with pytest.raises(ValueError, match=message):
        computer(network, x, torch.linspace(0.1, 1.5, 5), x, sigma_data=0.7)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_methods_whose_derivative_the_compiler_drops_are_refused():
    with pytest.raises(ValueError, match="only the tangent method dual is compiled, got two_pass"):
        TangentComputer("two_pass", compile=True)


class AsksForTheType(torch.nn.Module):
    """As einops does: the compiled graph carries pairs."""

    def forward(self, u, t, labels=None, guidance=None):
        if not isinstance(u, torch.Tensor):
            raise TypeError(f"unknown tensor type {type(u)}")
        return u * t[:, None]


def test_what_cannot_be_compiled_is_refused_in_one_line(randn):
    x, computer = randn(5, 3).float(), TangentComputer("dual", compile=True)
    with pytest.raises(ValueError, match="AsksForTheType cannot be one compiled graph") as caught:
        computer(AsksForTheType(), x, torch.linspace(0.1, 1.5, 5), x, sigma_data=0.7)
    assert "\n" not in str(caught.value)


def test_fake_tensors_are_not_compiled():
    """As of a dry run: the network is checked when there are numbers."""
    computer = TangentComputer("dual", compile=True)
    computer.evaluate.compiled = None
    with FakeTensorMode():
        x, t = torch.zeros(5, 3), torch.ones(5)
        F, J = computer(MLP((3,), 16, 1, emb_channels=8).train(), x, t, x, sigma_data=0.7)
    assert F.shape == J.shape == (5, 3)
    assert not computer.evaluate.trusted
