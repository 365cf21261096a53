# SPDX-License-Identifier: Apache-2.0
"""Gradient noise against gradients known in closed form, and what it must leave alone."""

import json
import math

import numpy as np
import pytest
import torch
from gaussian import PATH, ExactStudent, ExactTeacher, velocity
from lightning.pytorch.demos.boring_classes import BoringModel
from tiny import loader, trainer
from torch import nn
from torch.utils.data import DataLoader

from scm_lightning import ConsistencyModule
from scm_lightning.callbacks import GradientNoise
from scm_lightning.core import TangentWarmup
from scm_lightning.data import Batch
from scm_lightning.modules import DiffusionModule
from scm_lightning.networks import MLP, TimeEmbedding
from scm_lightning.objectives import Consistency, PairVelocity, TeacherVelocity

TIMES = (0.2, 1.1, 1.5645)


class Theta(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(3))


class Linear(DiffusionModule):
    """Loss cos(t) theta . x0, whose gradient is cos(t) times the mean of x0."""

    def training_step(self, batch, batch_idx, times=None):
        t = self.times.sample(len(batch.x0), PATH) if times is None else times
        loss = (t.cos() * (batch.x0 @ self.network.theta)).mean()
        return {"loss": loss}

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.0)


def linear():
    module = Linear(Theta(), PATH)
    module.batch_checks.first_samples = None  # data of another scale, on purpose
    return module


def fit(module, batches, tmp_path, **options):
    """Train for six steps and return what was measured."""
    noise = GradientNoise(TIMES, **{"num_batches": 4, "num_samples": 5, **options})
    trainer(6, default_root_dir=tmp_path, callbacks=[noise]).fit(module, batches)
    return json.loads((tmp_path / "gradient_noise.json").read_text())


def test_a_linear_loss_has_the_noise_of_its_data(tmp_path):
    """Trace of the covariance of the last four batches' means, of their first five samples."""
    x0 = torch.randn(6, 7, 3, generator=torch.Generator().manual_seed(0)) + 0.5
    batches = DataLoader([Batch(each, None) for each in x0], batch_size=None)
    found = fit(linear(), batches, tmp_path)
    means = x0[2:, :5].double().mean(1).numpy()
    variance, mean_square = means.var(0, ddof=1).sum(), np.square(means.mean(0)).sum()
    cos = np.cos(TIMES)
    np.testing.assert_allclose(found["gradient_variance"], cos**2 * variance, rtol=1e-4)
    np.testing.assert_allclose(found["gradient_noise"], variance / mean_square, rtol=1e-4)
    assert found["t"] == list(TIMES)
    assert found["tan_t"] == pytest.approx([math.tan(t) for t in TIMES])
    assert (found["step"], found["num_batches"], found["num_samples"]) == (6, 4, 5)
    assert "tangent_norm" not in found


def test_the_exact_student_has_no_tangent_and_a_known_derivative(tmp_path):
    """F = h(t) u is h'(t) u in t alone, h' u + h du/dt along the ODE; u ~ N(0, 1)."""
    module = ConsistencyModule(
        ExactStudent(),
        TeacherVelocity(),
        ExactTeacher(),
        init=None,
        path=PATH,
        objective=Consistency(warmup=TangentWarmup(0)),
    )
    x0 = [Batch(batch.x0.double(), None) for batch, _ in zip(loader(4000), range(6), strict=False)]
    found = fit(module.double(), DataLoader(x0, batch_size=None), tmp_path, num_samples=4000)
    assert max(found["tangent_norm"]) < 1e-3
    u = torch.ones(1, 1, dtype=torch.float64)
    for number, t in enumerate(TIMES):
        time = torch.full((1,), t, dtype=torch.float64)
        for name, du_dt in (("partial_F_partial_t", 0 * u), ("dF_dt", velocity(u, time))):
            _, slope = torch.func.jvp(module.student, (u, time), (du_dt, torch.ones_like(time)))
            assert found[name][number] == pytest.approx(abs(slope.item()), rel=0.03)


def test_a_run_is_left_as_it_was(tmp_path):
    """Weights, gradients and random numbers: the same with and without."""
    states = []
    for callbacks in ([], [GradientNoise(TIMES, 2, 5)]):
        torch.manual_seed(3)
        module = ConsistencyModule(MLP((3,), 16, 1, 8), PairVelocity(), path=PATH)
        trainer(4, default_root_dir=tmp_path, callbacks=callbacks).fit(module, loader())
        gradients = [each.grad for each in module.parameters() if each.grad is not None]
        states.append([torch.get_rng_state(), *module.state_dict().values(), *gradients])
    assert len(states[0]) == len(states[1])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))
    assert (tmp_path / "gradient_noise.json").is_file()


def test_it_sees_the_times_it_asks_for(tmp_path):
    """A time embedding of log tan t is steep at both ends, the identity's is not."""
    parts = {}
    for transform in ("identity", "log"):
        torch.manual_seed(3)
        network = MLP((3,), 16, 1, 8, time_embedding=TimeEmbedding(transform))
        nn.init.normal_(network.output.weight)
        module = ConsistencyModule(network, PairVelocity(), path=PATH)
        parts[transform] = fit(module, loader(), tmp_path)["partial_F_partial_t"]
    assert parts["log"][2] > 20 * parts["log"][1]
    assert parts["identity"][2] < 3 * parts["identity"][1]


def test_a_teacher_has_gradient_noise_too(tmp_path):
    found = fit(DiffusionModule(MLP((3,), 16, 1, 8), path=PATH), loader(), tmp_path)
    assert all(0.0 < noise < math.inf for noise in found["gradient_noise"])
    assert "dF_dt" not in found


def test_impossible_measurements_are_refused(tmp_path):
    for times in ((), (0.0,), (1.571,), (math.nan,)):
        with pytest.raises(ValueError, match="must be angles"):
            GradientNoise(times)
    with pytest.raises(ValueError, match="at least 2 batches"):
        GradientNoise(num_batches=1)
    with pytest.raises(ValueError, match="at least 7 steps"):
        fit(linear(), loader(), tmp_path, num_batches=7)
    with pytest.raises(ValueError, match="the 9 samples"):
        fit(linear(), loader(), tmp_path, num_samples=9)
    with pytest.raises(
        ValueError, match="whose training_step takes `times`, one process and at least 4"
    ):
        fit(BoringModel(), loader(), tmp_path)

    class WithoutTimes(DiffusionModule):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match="takes `times`, one process"):
        fit(WithoutTimes(MLP((3,), 16, 1, 8), PATH), loader(), tmp_path)
