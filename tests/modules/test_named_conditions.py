# SPDX-License-Identifier: Apache-2.0
r"""Training by a condition with a name, on Gaussians whose mean is the condition.

With data N(m, s^2) of a sample's own mean m, and std(t) of `gaussian.py`,

    dx/dt   = -sin m + cos sin (sigma_data^2 - s^2) / std^2 (x - cos m)     along the ODE
    f(x, t) = m + s (x - cos m) / std(t)

A student that has a f in place of f has df/dt = 0 along the ODE too if a = 1; and in general

    f_a = a f + (1 - a) cos x    with F_a = a F,    df_a/dt = (1 - a) d(cos x)/dt
"""

import pytest
import torch
from gaussian import DATA_STD, PATH, std
from test_conditions import outputs_of, prepared
from torch import nn

from scm_lightning import ConsistencyModule, DiffusionModule
from scm_lightning.core import Conditions, Guided, TangentWarmup, expand_time
from scm_lightning.data import Batch, SampleRequest
from scm_lightning.objectives import Consistency, Discrete, PairVelocity, TeacherVelocity
from scm_lightning.sampling import DiffusionSampling, FewStepSampling, sample_ode, time_grid

SIGMA = PATH.sigma_data
T = torch.tensor([0.05, 0.4, 0.9, 1.3, 1.55], dtype=torch.float64)


def velocity(x_t, t, mean):
    t = expand_time(t, x_t)
    factor = t.cos() * t.sin() * (SIGMA**2 - DATA_STD**2) / std(t) ** 2
    return factor * (x_t - t.cos() * mean) - t.sin() * mean


class Teacher(nn.Module):
    """F of the exact diffusion model of every mean."""

    def forward(self, u, t, labels=None, guidance=None, *, mean):
        return velocity(SIGMA * u, t, mean) / SIGMA


class Student(nn.Module):
    """F of the exact consistency function, times a parameter."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, u, t, labels=None, guidance=None, *, mean):
        t, x_t = expand_time(t, u), SIGMA * u
        f = mean + DATA_STD * (x_t - t.cos() * mean) / std(t)
        return self.factor * (t.cos() * x_t - f) / (t.sin() * SIGMA)


def distilled(factor, objective):
    options = {"init": None, "path": PATH, "objective": objective}
    return ConsistencyModule(Student(factor), TeacherVelocity(), Teacher(), **options)


def data(randn):
    mean = randn(5, 3)
    return mean, Batch(mean + DATA_STD * randn(5, 3), None, conditions={"mean": mean})


@pytest.mark.parametrize("method", ["dual", "func", "two_pass"])
def test_the_exact_student_has_no_tangent_and_another_the_known_one(randn, method):
    """By every exact method; a mean that belongs to another sample would show at once."""
    _, batch = data(randn)
    objective = Consistency(tangents=method, warmup=TangentWarmup(0))
    exact = outputs_of(prepared(distilled(1.0, objective)), batch)
    assert float(exact["tangent_norm"].max()) < 1e-9
    a = 1.3
    found = outputs_of(prepared(distilled(a, objective)), batch)["tangent_norm"]
    torch.manual_seed(3)
    x_t, _ = PATH.add_noise(batch.x0, T)
    dx_dt = velocity(x_t, T, batch.conditions["mean"])
    t = T[:, None]
    g = t.cos() * (1 - a) * (t.cos() * dx_dt - t.sin() * x_t)
    torch.testing.assert_close(found, g.norm(dim=1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("objective", [Consistency(), Discrete(9)], ids=["continuous", "discrete"])
def test_every_sample_is_trained_by_its_own_condition(randn, objective):
    """A permuted batch has permuted losses; a condition that moves on its own has others."""
    mean, batch = data(randn)
    module = prepared(
        ConsistencyModule(Student(1.2), PairVelocity(), path=PATH, objective=objective)
    )
    found = outputs_of(module, batch)["tangent_norm"]
    other = outputs_of(module, batch._replace(conditions={"mean": mean.roll(1, 0)}))
    assert float((other["tangent_norm"] - found).abs().min()) > 1e-6


def test_a_teacher_is_trained_by_conditions_that_are_hidden_together(randn):
    """At probability 1 - epsilon the loss is that of the mean zero; at 0 the exact model's."""
    _, batch = data(randn)

    class Trainable(Teacher):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, u, t, labels=None, guidance=None, *, mean):
            return super().forward(u, t, mean=mean) + self.shift

    def loss(probability, conditions):
        module = prepared(DiffusionModule(Trainable(), PATH, condition_dropout=probability))
        x_t_of = batch._replace(conditions=conditions)
        torch.manual_seed(3)
        return module.training_step(x_t_of, 0, T)["sample_loss"]

    given = batch.conditions
    zero = {"mean": torch.zeros_like(given["mean"])}
    hidden = loss(1 - 1e-12, given)
    assert float((hidden - loss(0.0, given)).abs().max()) > 1e-3
    assert torch.equal(hidden, loss(1 - 1e-12, zero))


def test_samples_are_of_their_own_mean(randn):
    """The exact student in one step and in two, and the teacher by its solver."""
    sampling = FewStepSampling(teacher=DiffusionSampling(30))
    module = ConsistencyModule(
        Student(), TeacherVelocity(), Teacher(), None, None, PATH, sampling=sampling
    ).double()
    mean = 10 * randn(5, 3)
    noise = SIGMA * randn(5, 3)
    draws = module.reference_draws() | module.draws()
    given = Conditions(named={"mean": mean})
    generators = [torch.Generator().manual_seed(seed) for seed in range(5)]
    one = draws["1_step"](noise, given, generators)
    t_max = torch.tensor(PATH.t_max(), dtype=torch.float64)
    expected = mean + DATA_STD * (noise - t_max.cos() * mean) / std(t_max)
    torch.testing.assert_close(one, expected)
    solved = draws["teacher"](noise, given, generators)
    assert float((solved - expected).norm(dim=1).max()) < 0.05 * DATA_STD
    assert float((draws["2_step"](noise, given, generators) - mean).abs().max()) < 5 * DATA_STD


def test_a_teacher_is_guided_by_each_condition_apart(randn):
    """Against the solver on the guided function, at the scales asked for, and their cost."""

    class Placed(Teacher):
        def forward(self, u, t, labels=None, guidance=None, *, mean, place):
            return super().forward(u, t, mean=mean + place)

    scales = {"place": 1.5, "mean": 0.6}
    sampling = DiffusionSampling(4, guidance=scales)
    module = DiffusionModule(
        Placed(), PATH, condition_dropout={"place": 0.1, "mean": 0.1}, sampling=sampling
    ).double()
    mean, place, noise = randn(5, 3), randn(5, 3), SIGMA * randn(5, 3)
    given = Conditions(named={"mean": mean, "place": place})
    F = Guided(Placed(), given, {name: torch.full((5,), s).double() for name, s in scales.items()})
    expected = sample_ode(F, noise, time_grid(4, PATH), path=PATH)
    torch.testing.assert_close(module.draws()["teacher"](noise, given, None), expected)
    request = SampleRequest(torch.arange(5), None, (3,), 4, given.named)
    drawn = module.validation_step(request, 0)
    assert {name: samples.nfe for name, samples in drawn.items()} == {"teacher": 21, "denoiser": 3}
    plain = DiffusionModule(Placed(), PATH, condition_dropout=0.1, sampling=sampling)
    with pytest.raises(ValueError, match=r"each alone, got condition_dropout 0\.1; give a prob"):
        plain.setup("fit")


def test_an_augmentation_that_would_leave_an_image_behind_is_refused(randn):
    """A vector is not in its way."""
    module = DiffusionModule(Teacher(), PATH, augmentation=lambda x0: (2 * x0, None))
    x0 = randn(5, 2, 4, 4)
    assert torch.equal(module.augment(x0, {"pose": randn(5, 2)})[0], 2 * x0)
    with pytest.raises(ValueError, match="but not the condition image, an image of their size"):
        module.augment(x0, {"image": randn(5, 1, 4, 4)})


def test_an_empty_request_keeps_the_shape_of_conditions(randn):
    """Sharded networks are called by all processes, with samples to draw or without."""
    module = ConsistencyModule(Student(), PairVelocity(), path=PATH).double()
    nothing = torch.zeros(0, dtype=torch.int64)
    request = SampleRequest(nothing, None, (3,), 4, {"mean": randn(0, 3)})
    drawn = module.validation_step(request, 0)
    assert {name: samples.x0.shape for name, samples in drawn.items()} == {
        "1_step": (0, 3),
        "2_step": (0, 3),
    }
