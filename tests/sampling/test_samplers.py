# SPDX-License-Identifier: Apache-2.0
"""Every sampler hands labels, scale and generators on, costs what it says, and keeps no graph."""

import pytest
import torch
from gaussian import PATH
from torch import nn

from scm_lightning.core import NULL_LABEL, Bound, flow_step, sample_generators
from scm_lightning.sampling import sample_consistency, sample_flow_map, sample_ode
from scm_lightning.sampling.samplers import (
    consistency_sampler,
    consistency_samplers,
    flow_map_sampler,
    teacher_samplers,
)

LABELS, SCALE = torch.tensor([0, 1, 2, 3, 1]), 1.6
TIMES = (PATH.t_max(), 1.1, 0.4)


class Listener(nn.Module):
    """F = (a (label + 2) + scale) u, a being a parameter; and what it was called with."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        self.labels, self.scales = [], []

    def forward(self, u, t, labels=None, guidance=None, t_end=None):
        self.labels.append(labels)
        self.scales.append(guidance)
        factor = self.a * (0 if labels is None else labels + 2) * torch.ones(len(u)).double()
        return (factor + (0 if guidance is None else guidance))[:, None] * u


@pytest.mark.parametrize("scale", [SCALE, None])
@pytest.mark.parametrize("kind", ["consistency", "flow map"])
def test_few_step_samplers_tell_the_network_labels_and_scale(randn, kind, scale):
    network, noise = Listener(), randn(5, 3)
    if kind == "consistency":
        sampler = consistency_sampler(network, PATH, TIMES, scale)
    else:
        sampler = flow_map_sampler(network, PATH, (*TIMES, 0.0), PATH.jump, scale)
    sampler.draw(noise, LABELS, sample_generators(range(5), 3))
    assert sampler.nfe == len(network.labels) == 3
    assert all(torch.equal(found, LABELS) for found in network.labels)
    for found in network.scales:
        assert found is None if scale is None else found.tolist() == [scale] * 5


@pytest.mark.parametrize("scale", [SCALE, None])
def test_the_teacher_s_samplers_are_guided_by_its_labels(randn, scale):
    """F is linear in the label: guided it is F of label + 2 = 1 + scale (label + 1)."""
    network, noise, num = Listener(), randn(5, 3), 4
    samplers = teacher_samplers(network, PATH, num, scale)
    exact = LABELS + 2 if scale is None else 1 + scale * (LABELS + 1)
    by_hand = teacher_samplers(lambda u, t, labels: (0.1 * exact)[:, None] * u, PATH, num)
    for name, calls in (("teacher", 2 * num - 1), ("denoiser", 1)):
        network.labels.clear()
        found = samplers[name].draw(noise, LABELS, None)
        torch.testing.assert_close(found, by_hand[name].draw(noise, None, None))
        halves = 1 if scale is None else 2
        assert samplers[name].nfe == halves * calls == halves * len(network.labels)
        if scale is not None:
            assert network.labels[0].tolist() == [*LABELS.tolist(), *[NULL_LABEL] * 5]


def test_samplers_are_named_by_their_steps():
    samplers = consistency_samplers(Listener(), PATH, (1.3, 0.6))
    assert {name: sampler.nfe for name, sampler in samplers.items()} == {
        "1_step": 1,
        "2_step": 2,
        "3_step": 3,
    }


def test_fresh_noise_is_of_the_generators_handed_in(randn):
    """The same ones, the same samples; torch's global state is not touched."""
    sampler, noise = consistency_sampler(Listener(), PATH, TIMES), randn(5, 3)
    state = torch.random.get_rng_state()
    first = sampler.draw(noise, LABELS, sample_generators(range(5), 3))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(sampler.draw(noise, LABELS, sample_generators(range(5), 3)), first)
    assert not torch.equal(sampler.draw(noise, LABELS, sample_generators(range(5), 4)), first)


def test_samples_carry_no_graph(randn):
    """Through networks that are trained: a graph over all steps would fill the memory."""
    network, noise = Listener(), randn(5, 3)

    def step(F, x_t, t, t_end):
        return flow_step(F, x_t, t, t_end, sigma_data=PATH.sigma_data)

    for x0 in (
        sample_consistency(network, noise, TIMES, path=PATH),
        sample_flow_map(Bound(network), noise, TIMES, step=step, path=PATH),
        sample_ode(network, noise, TIMES, path=PATH),
    ):
        assert not x0.requires_grad


def test_heun_is_the_solver_unless_asked_otherwise(randn):
    network, noise = Listener(), randn(5, 3)
    found = {
        solver: sample_ode(Bound(network, LABELS), noise, TIMES, path=PATH, **options)
        for solver, options in (
            ("default", {}),
            ("heun", {"solver": "heun"}),
            ("ddim", {"solver": "ddim"}),
        )
    }
    assert torch.equal(found["default"], found["heun"])
    assert not torch.equal(found["default"], found["ddim"])
