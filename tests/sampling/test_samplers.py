# SPDX-License-Identifier: Apache-2.0
"""Every way to sample hands labels, scale and generators on, and keeps no graph."""

from functools import partial

import pytest
import torch
from gaussian import PATH
from torch import nn

from scm_lightning.core import (
    AVERAGE_VELOCITY,
    NULL_LABEL,
    Bound,
    Conditions,
    Segments,
    sample_generators,
)
from scm_lightning.sampling import (
    Churn,
    DiffusionSampling,
    FreshNoise,
    SegmentJumps,
    few_step_draw,
    sample_consistency,
    sample_flow_map,
    sample_ode,
    time_grid,
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


STEPS = {"consistency": FreshNoise(), "segments": SegmentJumps(Segments(3))}


@pytest.mark.parametrize("scale", [SCALE, None])
@pytest.mark.parametrize("kind", STEPS)
def test_few_step_draws_tell_the_network_labels_and_scale(randn, kind, scale):
    network, noise, steps = Listener(), randn(5, 3), STEPS[kind]
    times = steps.times(3, None, TIMES[1:], PATH)
    draw = few_step_draw(network, steps, times, PATH, scale)
    draw(noise, Conditions(LABELS), sample_generators(range(5), 3))
    assert len(network.labels) == 3
    assert all(torch.equal(found, LABELS) for found in network.labels)
    for found in network.scales:
        assert found is None if scale is None else found.tolist() == [scale] * 5


@pytest.mark.parametrize("scale", [SCALE, None])
def test_the_teacher_is_guided_by_its_labels(randn, scale):
    """F is linear in the label: guided it is F of label + 2 = 1 + scale (label + 1)."""
    network, noise, num = Listener(), randn(5, 3), 4
    draws = DiffusionSampling(num, guidance=scale).draws(network, PATH)
    exact = LABELS + 2 if scale is None else 1 + scale * (LABELS + 1)
    by_hand = DiffusionSampling(num).draws(lambda u, t, labels: (0.1 * exact)[:, None] * u, PATH)
    for name, calls in (("teacher", 2 * num - 1), ("denoiser", 1)):
        network.labels.clear()
        found = draws[name](noise, Conditions(LABELS), None)
        torch.testing.assert_close(found, by_hand[name](noise, Conditions(), None))
        assert len(network.labels) == calls
        if scale is not None:
            assert network.labels[0].tolist() == [*LABELS.tolist(), *[NULL_LABEL] * 5]


def test_fresh_noise_is_of_the_generators_handed_in(randn):
    """The same ones, the same samples; torch's global state is not touched."""
    draw, noise = few_step_draw(Listener(), FreshNoise(), TIMES, PATH, None), randn(5, 3)
    state = torch.random.get_rng_state()
    first = draw(noise, Conditions(LABELS), sample_generators(range(5), 3))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(draw(noise, Conditions(LABELS), sample_generators(range(5), 3)), first)
    assert not torch.equal(draw(noise, Conditions(LABELS), sample_generators(range(5), 4)), first)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm-2s", "dpm++"])
def test_every_solver_is_reached(randn, solver):
    """By its name in the options, as by a call; churn with the sample's own generators."""
    network, noise, times = Listener(), randn(5, 3), time_grid(5, PATH)
    found = DiffusionSampling(5, solver).draws(network, PATH)["teacher"](
        noise, Conditions(LABELS), None
    )
    F = Bound(network, LABELS)
    assert torch.equal(found, sample_ode(F, noise, times, path=PATH, solver=solver))
    if solver != "dpm++":
        churned = DiffusionSampling(5, solver, Churn(4.0)).draws(network, PATH)["teacher"]
        drawn = [
            churned(noise, Conditions(LABELS), sample_generators(range(5), 3)) for _ in range(2)
        ]
        assert torch.equal(*drawn)
        assert not torch.equal(drawn[0], found)


def test_samples_carry_no_graph(randn):
    """Through networks that are trained: a graph over all steps would fill the memory."""
    network, noise = Listener(), randn(5, 3)

    step = partial(AVERAGE_VELOCITY.jump, sigma_data=PATH.sigma_data)
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
