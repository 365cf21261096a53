# SPDX-License-Identifier: Apache-2.0
"""The consistency module: Algorithm 1 by an independent hand, options, teachers, convergence."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gaussian import DATA_STD, PATH, ExactTeacher, std
from tiny import FixedTimes, loader, mlp, trainer, wake
from torch import nn

from scm_lightning import ConsistencyModule, TimeProposal, TrigFlow
from scm_lightning.core import TangentBound, TangentWarmup, expand_time
from scm_lightning.data import Batch
from scm_lightning.modules import PowerFunction
from scm_lightning.networks import MLP
from scm_lightning.objectives import Consistency, MeanFlow, PairVelocity, TeacherVelocity
from scm_lightning.sampling import FewStepSampling

T = torch.tensor([0.05, 0.4, 0.9, 1.3, 1.55], dtype=torch.float64)


def one_step(velocity, randn, step=30, **options):
    """Loss and student gradients of the module on one batch, at a given optimizer step."""
    teacher = wake(mlp(), seed=1)
    objective = Consistency(FixedTimes(T), warmup=TangentWarmup(40), **options)
    module = ConsistencyModule(
        *(wake(mlp()), velocity, teacher, objective), init=None, path=PATH
    ).double()
    wake(module.objective.weighting_head, seed=2)
    module._trainer = SimpleNamespace(global_step=step)
    batch = Batch(PATH.sigma_data * randn(5, 3), None)
    torch.manual_seed(3)
    loss = module.training_step(batch, 0)["loss"]
    loss.backward()
    return module, batch, loss


def algorithm_1(module, batch, r, distil):
    """Algorithm 1 written out again: reverse mode twice for the derivative, per-sample loops."""
    sigma, student = PATH.sigma_data, module.student
    x0 = batch.x0
    torch.manual_seed(3)
    z = sigma * torch.randn(x0.shape, dtype=torch.float64)
    losses = []
    for i, t in enumerate(T):
        x_t = t.cos() * x0[i] + t.sin() * z[i]
        dx_dt = t.cos() * z[i] - t.sin() * x0[i]
        if distil:
            dx_dt = sigma * module.teacher(x_t[None] / sigma, t[None])[0].detach()

        def F(x, t):
            return student(x[None] / sigma, t[None])[0]

        _, dF_dt = torch.autograd.functional.jvp(F, (x_t, t), (dx_dt, torch.ones_like(t)))
        F_theta = F(x_t, t)
        df_dt = -t.cos() * (sigma * F_theta - dx_dt) - r * t.sin() * (x_t + sigma * dF_dt)
        g = (t.cos() * df_dt).detach()
        g = g / (g.square().sum().sqrt() + 0.1)
        w = module.objective.weighting_head(t[None])[0] + math.log(3)
        squared = (F_theta - F_theta.detach() - g).square().sum()
        losses.append(w.exp() / 3 * squared - w)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("velocity", [PairVelocity(), TeacherVelocity()])
def test_training_step_is_algorithm_1(randn, velocity):
    """Loss and all gradients, of student and weighting head, in float64."""
    module, batch, loss = one_step(velocity, randn)
    found = [
        parameter.grad.clone()
        for group in module.parameter_groups()
        for parameter in group["params"]
    ]
    module.zero_grad()
    expected = algorithm_1(module, batch, r=30 / 40, distil=velocity.needs_teacher)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for one, group_parameter in zip(
        found,
        [p for group in module.parameter_groups() for p in group["params"]],
        strict=True,
    ):
        torch.testing.assert_close(one, group_parameter.grad, rtol=1e-8, atol=1e-10)


def test_an_extra_prior_multiplies_the_loss_gradient(randn):
    """By 1 / (sigma_data tan t), for every sample: here one sample stands for all."""
    plain = one_step(PairVelocity(), randn)[0].objective
    log_weight = plain.log_weight(T, PATH, 3)
    plain.prior = "extra"
    ratio = (plain.log_weight(T, PATH, 3) - log_weight).exp()
    torch.testing.assert_close(ratio, 1 / (PATH.sigma_data * T.tan()))


def test_every_bound_does_what_it_says(randn):
    g = 5 * randn(5, 3)
    norm = g.square().sum(1, keepdim=True).sqrt()
    for kind, expected in {
        "l2": g / (norm + 0.1),
        "rms": g / (norm / 3**0.5 + 0.1),
        "clip": g.clamp(-1, 1),
        "none": g,
    }.items():
        torch.testing.assert_close(TangentBound(kind)(g), expected)


def test_weighting_starts_at_its_optimum_and_can_be_switched_off():
    fixed = Consistency(weighting="none")
    expected = torch.full((5,), math.log(3)).double()
    torch.testing.assert_close(fixed.log_weight(T, PATH, 3), expected)
    assert not any(p.requires_grad for p in fixed.weighting_head.parameters())
    rms = Consistency(bound=TangentBound("rms"))
    assert torch.equal(rms.log_weight(T, PATH, 3), torch.zeros(5).double())


def test_the_head_can_have_its_own_learning_rate():
    module = ConsistencyModule(mlp(), objective=Consistency(weighting_lr=0.5))
    rates = [group["lr"] for group in module.configure_optimizers().param_groups]
    assert rates == [1e-4, 0.5]


def test_student_starts_as_its_teacher_and_the_teacher_stays():
    """After some steps the student has moved, the teacher not; its dropout is off."""
    teacher = wake(mlp(dropout=0.3), seed=1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    module = ConsistencyModule(mlp(dropout=0.3), TeacherVelocity(), teacher, path=PATH)
    for name, value in module.student.state_dict().items():
        assert torch.equal(value, before[name])
    trainer(3).fit(module, loader())
    assert not module.teacher.network.training
    for name, value in module.teacher.network.state_dict().items():
        assert torch.equal(value, before[name])
    moved = [not torch.equal(value, before[n]) for n, value in module.student.named_parameters()]
    assert all(moved)


def test_the_average_follows_the_student():
    """Against the power function's weights of the student after every step."""
    module = ConsistencyModule(wake(mlp()), PairVelocity(), path=PATH, ema=PowerFunction(0.1))
    history = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            history.append(module.student.input.weight.detach().clone())

    module.optimizer = lambda groups: Recorder(groups, lr=0.1)
    trainer(4).fit(module, loader())
    gamma = np.roots([1, 7, 16 - 0.1**-2, 12 - 0.1**-2]).real.max()  # 6.94
    average = torch.zeros_like(history[0])
    for step, weight in enumerate(history, start=1):
        beta = (1 - 1 / step) ** (gamma + 1)
        average = beta * average + (1 - beta) * weight
    torch.testing.assert_close(module.ema.network.input.weight, average, rtol=1e-4, atol=1e-6)
    assert int(module.ema.num_images) == 20


def test_images_are_counted_per_optimizer_step():
    """Two batches of five to a step."""
    module = ConsistencyModule(wake(mlp()), PairVelocity(), path=PATH)
    trainer(3, accumulate_grad_batches=2).fit(module, loader())
    assert (int(module.ema.num_steps), int(module.ema.num_images)) == (3, 30)


def test_data_of_another_scale_are_refused_with_the_measured_value():
    """Measured on 256 samples, however small the batch."""
    module = ConsistencyModule(mlp(), PairVelocity(), path=TrigFlow(0.5))
    with pytest.raises(ValueError, match=r"= 0.5, got 0.7\d* over 260 samples, where 0\.4"):
        trainer(99).fit(module, loader())


def test_impossible_combinations_are_refused():
    module = ConsistencyModule(mlp(), TeacherVelocity())
    with pytest.raises(ValueError, match="TeacherVelocity needs a teacher, got none"):
        trainer(1).fit(module, loader())
    with pytest.raises(ValueError, match="sampling times must be angles"):
        ConsistencyModule(mlp(), sampling=FewStepSampling(intermediate_times=(2.0,)))


class OneTime(nn.Linear):
    """A network that is not told where its step ends."""

    def forward(self, u, t, labels=None, guidance=None):
        return super().forward(u)


def test_a_network_that_takes_no_second_time_is_refused():
    """By an objective of two times alone, and before its first call."""
    trainer(1).fit(ConsistencyModule(OneTime(3, 3), path=PATH), loader())
    module = ConsistencyModule(OneTime(3, 3), objective=MeanFlow(), path=PATH)
    message = (
        r"MeanFlow calls .*t_end\), but OneTime.forward takes \(u, t, labels, guidance\); add t"
    )
    with pytest.raises(ValueError, match=message):
        trainer(1).fit(module, loader())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_trains_with_a_finite_loss(precision):
    """The loss is computed in float32 or wider, and the student moves."""
    module = ConsistencyModule(
        wake(mlp()),
        TeacherVelocity(),
        wake(mlp(), seed=1),
        path=PATH,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
    )
    before = module.student.input.weight.detach().clone()
    losses = []
    step = module.training_step
    module.training_step = lambda *args: losses.append(out := step(*args)) or out
    trainer(3, precision=precision).fit(module, loader())
    assert {out["loss"].dtype for out in losses} == {torch.float64}
    assert all(math.isfinite(out["loss"].item()) for out in losses)
    assert not torch.equal(before, module.student.input.weight.to(before.dtype))


@pytest.mark.slow
def test_distillation_on_gaussian_data_reaches_the_exact_function():
    """Exact velocity, an MLP from random weights: f within 2 % over the whole path."""
    torch.manual_seed(0)
    steps, batch_size = 8000, 256
    network = MLP((3,), model_channels=64, num_blocks=2, emb_channels=32)
    module = ConsistencyModule(
        network,
        TeacherVelocity(),
        ExactTeacher(),
        init=None,
        path=PATH,
        objective=Consistency(
            TimeProposal(-1.0, 1.8), warmup=TangentWarmup(2000), weighting_lr=1e-2
        ),
        optimizer=lambda groups: torch.optim.RAdam(groups, lr=1e-3, betas=(0.9, 0.99)),
        lr_schedule=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    )
    module.batch_checks.first_samples = None  # the data's own scale is 0.3 here, on purpose
    trainer(steps).fit(module, loader(batch_size, scale=1.0))
    t = torch.linspace(0.0, PATH.t_max(), 50).repeat_interleave(200)
    x_t = expand_time(std(t), torch.empty(len(t), 3)) * torch.randn(len(t), 3)
    exact = DATA_STD / expand_time(std(t), x_t) * x_t
    with torch.no_grad():
        f = PATH.consistency(module.ema.network(x_t / PATH.sigma_data, t), x_t, t)
    relative = float((f - exact).norm() / exact.norm())
    print(f"relative error {relative:.4f}")
    assert relative < 0.02
