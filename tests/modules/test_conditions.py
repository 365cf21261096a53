# SPDX-License-Identifier: Apache-2.0
"""Labels, augmentation, averages and seeds: what each kind of training and sampling hands on."""

from types import SimpleNamespace

import pytest
import torch
from gaussian import PATH
from tiny import mlp, wake
from torch import nn

from scm_lightning import ConsistencyModule, DiffusionModule
from scm_lightning.core import Conditions, Guided, tangent_norm
from scm_lightning.data import Batch, SampleRequest
from scm_lightning.modules import EMA, HalfLife
from scm_lightning.objectives import (
    AlphaFlow,
    AlphaSchedule,
    Consistency,
    Discrete,
    MeanFlow,
    PairVelocity,
    TeacherVelocity,
)
from scm_lightning.sampling import (
    DiffusionSampling,
    sample_consistency,
    sample_ode,
    time_grid,
)

SIGMA = PATH.sigma_data
T = torch.tensor([0.05, 0.4, 0.9, 1.3, 1.55], dtype=torch.float64)
LABELS = torch.tensor([2, 0, 1, 1, 2])
CLASSES = {"num_classes": 3}


def without_classes(network):
    """A network that takes labels and does not listen."""
    nn.init.zeros_(network.conditioning.label.weight)
    return network


def diffusion():
    return DiffusionModule(wake(mlp(**CLASSES)), PATH)


def consistency(**options):
    return ConsistencyModule(wake(mlp(**CLASSES)), PairVelocity(), path=PATH, **options)


def mean_flow():
    network = wake(mlp(two_times=True, **CLASSES))
    return ConsistencyModule(network, objective=MeanFlow(), path=PATH)


def distilled(objective):
    """Only the teacher listens."""
    student = without_classes(wake(mlp(two_times=objective.two_times, **CLASSES)))
    teacher = wake(mlp(**CLASSES), 1)
    return ConsistencyModule(student, TeacherVelocity(), teacher, objective, None, PATH)


KINDS = {
    "diffusion": diffusion,
    "consistency": consistency,
    "discrete consistency": lambda: consistency(objective=Discrete(9)),
    "MeanFlow": mean_flow,
    "distilled consistency": lambda: distilled(Consistency()),
    "distilled MeanFlow": lambda: distilled(MeanFlow()),
    "distilled alpha-Flow": lambda: distilled(AlphaFlow(schedule=AlphaSchedule(0, 2 * 10**6))),
}


def prepared(module):
    """Outside a trainer, at fixed times, past the warm-up."""
    module = module.double()
    module._trainer = SimpleNamespace(global_step=10**6)
    return module


def outputs_of(module, batch):
    torch.manual_seed(3)
    is_two = isinstance(module, ConsistencyModule) and module.objective.two_times
    return module.training_step(batch, 0, (T, T / 2) if is_two else module.times_at(T))


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_is_trained_with_its_own_label(randn, kind):
    """A sample's loss in a mixed batch is its loss in a batch of its class, and no other's."""
    module, x0 = prepared(KINDS[kind]()), SIGMA * randn(5, 3)
    # Where g has unit length the loss hardly tells: its norm before that does.
    key = "sample_loss" if kind == "diffusion" else "tangent_norm"
    mixed = outputs_of(module, Batch(x0, LABELS))
    alone = [outputs_of(module, Batch(x0, torch.full((5,), label)))[key] for label in range(3)]
    expected = torch.stack([alone[label][place] for place, label in enumerate(LABELS.tolist())])
    torch.testing.assert_close(mixed[key], expected, rtol=1e-10, atol=1e-12)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((alone[one] - alone[other]).abs().min()) > 1e-6
    assert mixed["loss"].requires_grad
    of_samples = ("t", "sample_loss", "tangent_norm")
    assert not any(mixed[name].requires_grad for name in of_samples if name in mixed)


class Recorded:
    """A bound that keeps what it is given."""

    kind = "l2"

    def __init__(self, bound, seen):
        self.bound, self.seen = bound, seen

    def __call__(self, g):
        self.seen.append(g)
        return self.bound(g)


def test_the_norm_that_is_reported_is_that_of_the_unbounded_tangent(randn):
    module, seen = prepared(consistency()), []
    bound = module.objective.bound
    module.objective.bound = Recorded(bound, seen)
    outputs = outputs_of(module, Batch(SIGMA * randn(5, 3), LABELS))
    torch.testing.assert_close(outputs["tangent_norm"], tangent_norm(seen[0]))


def test_mean_flow_has_the_weight_asked_for(randn):
    """Losses d^2 / (d^2 + c)^p, of the residual's norm d."""
    network, batch = wake(mlp(two_times=True)), Batch(SIGMA * randn(5, 3), None)
    for p, c in ((0.5, 0.2), (1.0, 1e-3)):
        objective = MeanFlow() if p == 1.0 else MeanFlow(p=p, c=c)
        module = ConsistencyModule(network, objective=objective, path=PATH)
        found = outputs_of(prepared(module), batch)
        squared = found["tangent_norm"] ** 2
        torch.testing.assert_close(found["sample_loss"], squared / (squared + c) ** p)


def test_augmented_data_are_trained_on_and_told(randn):
    """Twice the data, with two labels: the loss of the same data handed over so."""

    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, u, t, labels, augment=None):
            return (
                self.weight * u if augment is None else (self.weight + augment.sum(1))[:, None] * u
            )

    x0, augment = SIGMA * randn(5, 3), randn(5, 2)

    def loss(augmentation, x0):
        module = prepared(DiffusionModule(Told(), PATH, augmentation=augmentation))
        return outputs_of(module, Batch(x0, None))["sample_loss"]

    found = loss(lambda x: (2 * x, augment), x0)
    torch.testing.assert_close(found, loss(lambda x: (x, augment), 2 * x0))
    plain = loss(None, 2 * x0)
    torch.testing.assert_close(loss(lambda x: (2 * x, None), x0), plain)
    assert float((found - plain).abs().min()) > 1e-6


def test_diffusion_is_sampled_by_its_average_with_its_scale_and_labels(randn):
    """Against the solver on the averaged network, at the scale asked for."""
    sampling = DiffusionSampling(num_steps=5, guidance=1.6)
    module = DiffusionModule(wake(mlp(**CLASSES)), PATH, sampling=sampling).double()
    wake(module.ema.network, 1)
    noise = SIGMA * randn(5, 3)
    F = Guided(module.ema.network, Conditions(LABELS), torch.full((5,), 1.6))
    expected = {
        "teacher": sample_ode(F, noise, time_grid(5, PATH), path=PATH),
        "denoiser": sample_consistency(F, noise, [PATH.t_max()], path=PATH),
    }
    for name, draw in module.draws().items():
        torch.testing.assert_close(draw(noise, Conditions(LABELS), None), expected[name])
    drawn = module.validation_step(SampleRequest(torch.arange(5), LABELS, (3,), 4), 0)
    assert {name: samples.nfe for name, samples in drawn.items()} == {"teacher": 18, "denoiser": 2}


def test_later_steps_depend_on_seed_and_index_alone():
    """Fresh noise comes from the sample's own generator, not from torch's global state."""
    module = ConsistencyModule(mlp(), PairVelocity(), path=PATH)
    wake(module.ema.network)
    whole = module.validation_step(SampleRequest(torch.arange(7), None, (3,), 4), 0)
    torch.manual_seed(99)
    part = module.validation_step(SampleRequest(torch.tensor([5, 2]), None, (3,), 4), 0)
    for name in ("1_step", "2_step"):
        torch.testing.assert_close(part[name].x0, whole[name].x0[[5, 2]])


def test_a_request_for_no_sample_draws_none():
    """Of the right shape and cost, with labels and without."""
    module = DiffusionModule(mlp(**CLASSES), PATH, sampling=DiffusionSampling(3))
    nothing = torch.zeros(0, dtype=torch.int64)
    for labels in (None, nothing):
        drawn = module.validation_step(SampleRequest(nothing, labels, (3,), 4), 0)
        assert {name: (tuple(s.x0.shape), s.nfe) for name, s in drawn.items()} == {
            "teacher": ((0, 3), 5),
            "denoiser": ((0, 3), 1),
        }


def test_an_average_takes_over_buffers_and_never_trains():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    ema = EMA(network, HalfLife())
    network[0].running_mean.fill_(0.7)
    network[0].num_batches_tracked.fill_(9)
    nn.ModuleList([ema]).train()
    ema.update(network, 5)
    assert ema.network[0].running_mean.tolist() == pytest.approx([0.7] * 3)
    assert int(ema.network[0].num_batches_tracked) == 9
    assert not any(module.training for module in ema.modules())
    assert not any(parameter.requires_grad for parameter in ema.parameters())


def test_a_half_life_ramps_up_by_its_own_share():
    """At most that share of the images before the step; without a ramp, the half-life alone."""
    for ramp_up, half_life in ((0.2, 400), (0.05, 100), (None, 5000)):
        decay = HalfLife(5000, ramp_up).decay(images_seen=2000, images_in_step=100)
        assert decay == pytest.approx(0.5 ** (100 / half_life))
    ema, network = EMA(nn.Linear(1, 1), HalfLife(5000, 0.2)), nn.Linear(1, 1)
    nn.init.ones_(network.weight), nn.init.zeros_(ema.network.weight)
    expected = 0.0
    for step in range(3):  # the first step finds no image before it, and takes the weights
        beta = 0.5 ** (100 / (0.2 * 100 * step)) if step else 0.0
        nn.init.constant_(network.weight, float(step + 1))
        expected = beta * expected + (1 - beta) * (step + 1)
        ema.update(network, 100)
        assert float(ema.network.weight.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rate", [-0.5, float("inf"), float("nan")])
def test_a_learning_rate_that_no_run_can_have_is_refused(rate):
    module = ConsistencyModule(mlp(), objective=Consistency(weighting_lr=rate))
    with pytest.raises(ValueError, match="finite number of at least 0, got"):
        module.configure_optimizers()
