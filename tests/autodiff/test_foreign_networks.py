# SPDX-License-Identifier: Apache-2.0
"""Networks that nobody here wrote: exact, or refused by name; never wrong without a word."""

import pytest
import torch
from foreign_adapter import Network
from foreign_checks import (
    bound,
    by_differences,
    by_forward_mode,
    by_gradient_of_gradient,
    gradient_error,
    judge,
    plain_step,
    reference,
    relative,
)
from foreign_networks import NETWORKS
from foreign_torch import TORCH, perceptrons

from scm_lightning.autodiff import TangentMethod, TwoPasses

CASES = [
    pytest.param(name, mode, id=f"{name}, {mode}", marks=[pytest.mark.slow] * network.slow)
    for name, network in NETWORKS.items()
    for mode in network.modes
]
PERCEPTRON = Network(perceptrons, (6, 4))
TWO_STATES = "each forward pass advances the power iteration"
KNOWN = {
    ("two_pass", "spectral_norm, both kinds"): TWO_STATES,
}
"""Where torch's own forward mode answers otherwise than a plain step."""
SLOW_TIME = [
    *TORCH,
    "Transformer2DModel",
    "Lumina2Transformer2DModel",
    "OmniGenTransformer2DModel",
    "UNet1DModel",
]
"""Others count to 1000, where the step of differences, 1e-3 rad, is 0.6 of theirs: too long."""
MOVING = {
    "BatchNorm, train mode": "samples depend on each other, and each has its own factor cos sin",
    "EDM2's weight norm": "each forward pass moves the weights",
    "spectral_norm, both kinds": TWO_STATES,
}
"""Networks that are no function of u and t alone."""
SAMPLE = {*TORCH, *list(NETWORKS)[::4]}
"""For torch's own forward mode, which is the reference already."""

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers and torch.compile give many


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_dual_is_exact_or_refuses_by_name(name, mode):
    verdict = judge(NETWORKS[name], "dual", mode)
    assert verdict.answer in ("exact", "refused"), verdict


@pytest.mark.parametrize("name", [name for name in SLOW_TIME if name not in MOVING])
def test_differences_are_as_accurate_as_they_promise(name):
    """Within 1e-3 where the network's own time is as slow as t, and all else exact."""
    verdict = judge(NETWORKS[name], "finite_difference", "float64")
    assert verdict.answer == "exact", verdict


@pytest.mark.parametrize(
    ("name", "mode", "method"),
    [
        pytest.param(
            *case.values,
            method,
            id=f"{case.id}, {method}",
            marks=[] if case.values[0] in SAMPLE else [pytest.mark.slow],
        )
        for case in CASES
        for method in ("two_pass", "func")
    ],
)
def test_torchs_forward_mode_is_exact_or_raises(name, mode, method):
    """It has no formula for many an operation; then its own error says so."""
    verdict = judge(NETWORKS[name], method, mode)
    if (method, name) in KNOWN:
        assert verdict.answer.startswith("wrong"), verdict
    else:
        assert verdict.answer in ("exact", "refused", "raises"), verdict


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_nothing_is_tested_at_zero(name, mode):
    """The output, its derivative, and most gradients are of ordinary size."""
    F, gradients, *_ = plain_step(NETWORKS[name], mode)
    dF = reference(NETWORKS[name], mode).dF
    assert 0.1 < float(F.double().square().mean().sqrt()) < 10
    assert float(dF.double().square().mean().sqrt()) > 0.01
    reached = [each for each in gradients.values() if each is not None]
    assert len(reached) > 0.8 * len(gradients)
    awake = [each for each in reached if float(each.abs().max()) > 1e-6]
    assert len(awake) > 0.5 * len(reached)


class Faulty(TangentMethod):
    """Two passes, with a fault."""

    def __init__(self, change):
        self.change = change

    def __call__(self, f, point):
        return self.change(f, point, *TwoPasses()(f, point))


def plant(change):
    return judge(PERCEPTRON, Faulty(change), "float64")


def test_the_harness_passes_what_is_right():
    assert plant(lambda f, at, F, dF: (F, dF)).answer == "exact"


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (lambda f, at, F, dF: (F, dF * (1 + 1e-12)), "wrong dF"),
        (lambda f, at, F, dF: (F * (1 + 1e-12), dF), "wrong F, gradients"),
        (lambda f, at, F, dF: (F.detach() + 0.5 * (F - F.detach()), dF), "wrong gradients"),
        (lambda f, at, F, dF: (F, dF + 0 * torch.rand(1)), "wrong state"),
    ],
    ids=["tangent", "value", "gradient", "random numbers"],
)
def test_the_harness_sees_planted_faults(change, answer):
    assert plant(change).answer == answer


def test_the_harness_sees_a_lost_gradient():
    weight = torch.ones(3)
    assert gradient_error({"a.weight": None}, {"a.weight": weight}) == float("inf")
    assert gradient_error({"a.weight": weight, "b": None}, {"a.weight": weight, "b": None}) == 0


@pytest.mark.parametrize("find", [by_gradient_of_gradient, by_differences])
def test_the_references_agree(find):
    _, dF, _ = by_forward_mode(PERCEPTRON, "float64")
    _, other, error = find(PERCEPTRON, "float64")
    assert relative(other, dF) <= bound(PERCEPTRON, "float64") + error
    assert error < 1e-9
