# SPDX-License-Identifier: Apache-2.0
"""Adaptive VSD on Gaussian data, where every network and the divergence are known."""

import math
from types import SimpleNamespace

import pytest
import torch
from gaussian import DATA_STD, PATH
from tiny import loader, mlp, trainer, wake
from torch import nn

from scm_lightning import ConsistencyModule
from scm_lightning.core import Bound, Conditions, GuidanceProposal, Guided, expand_time
from scm_lightning.data import Batch
from scm_lightning.objectives import AdaptiveVSD, PairVelocity, TeacherVelocity

SIGMA, T_MAX, TIME = PATH.sigma_data, PATH.t_max(), 0.9


class LinearStudent(nn.Module):
    """F = a u: draws N(0, q^2) with q = |cos T - sin T a| sigma_data."""

    def __init__(self, a):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, u, t, labels=None, guidance=None):
        return self.a * u


class GaussianTeacher(nn.Module):
    """F of the exact diffusion model of N(0, q^2)."""

    def __init__(self, q):
        super().__init__()
        self.q = q

    def forward(self, u, t, labels=None, guidance=None):
        variance = (t.cos() * self.q) ** 2 + (t.sin() * SIGMA) ** 2
        return expand_time(t.cos() * t.sin() * (SIGMA**2 - self.q**2) / variance, u) * u


def both(found):
    """L_VSD and L_fake."""
    return found.logs["train/vsd"], found.logs["train/fake"]


def spread(a):
    """Standard deviation of what the student draws."""
    return (math.cos(T_MAX) - math.sin(T_MAX) * a) * SIGMA


def divergence(a):
    """KL(student's samples || data) per element, both noised to `TIME`."""
    noise = (math.sin(TIME) * SIGMA) ** 2
    student = (math.cos(TIME) * spread(a)) ** 2 + noise
    data = (math.cos(TIME) * DATA_STD) ** 2 + noise
    return 0.5 * (student / data - 1 - torch.log(student / data))


@pytest.mark.parametrize("a", [-1.2, -0.2])
def test_the_gradient_is_that_of_the_divergence(a):
    """Times 2 sigma_data tan t / (cos t sin T) at one time t, for wide and narrow students."""
    torch.manual_seed(0)
    vsd = AdaptiveVSD().double()
    vsd.times = SimpleNamespace(
        sample=lambda num, path, device: torch.full((num,), TIME, dtype=torch.float64)
    )
    vsd.fake = GaussianTeacher(spread(a))
    student, x0 = LinearStudent(a), torch.zeros(400_000, 1, dtype=torch.float64)
    loss, fake = both(vsd.loss(Bound(student), Guided(GaussianTeacher(DATA_STD)), PATH, x0))
    loss.backward()
    parameter = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(divergence(parameter), parameter)
    factor = 2 * SIGMA * math.tan(TIME) / (math.cos(TIME) * math.sin(T_MAX))
    assert float(student.a.grad) == pytest.approx(factor * float(slope), rel=0.02)
    assert float(fake) > 0


def test_nothing_pulls_where_student_and_teacher_draw_the_same():
    a = (math.cos(T_MAX) - DATA_STD / SIGMA) / math.sin(T_MAX)
    vsd = AdaptiveVSD().double()
    vsd.fake = GaussianTeacher(DATA_STD)
    student = LinearStudent(a)
    x0, teacher = torch.zeros(50, 1).double(), Guided(GaussianTeacher(DATA_STD))
    loss, _ = both(vsd.loss(Bound(student), teacher, PATH, x0))
    loss.backward()
    assert abs(float(student.a.grad)) < 1e-12


LABELS = torch.arange(5) % 3
SCALES = torch.tensor([1.0, 1.2, 1.5, 1.7, 2.0], dtype=torch.float64)
TIMES = torch.tensor([0.2, 0.5, 0.9, 1.2, 1.5], dtype=torch.float64)
FAKE_TIMES = torch.tensor([0.1, 0.3, 0.7, 1.0, 1.4], dtype=torch.float64)


def always(t):
    return SimpleNamespace(sample=lambda num, path, device: t)


def networks():
    """Student, teacher and a VSD whose second network is no longer the student, in float64."""
    student = wake(mlp(num_classes=3, guided=True)).double()
    teacher = wake(mlp(num_classes=3), seed=1).double()
    vsd = AdaptiveVSD(weight=0.3, times=always(TIMES), fake_times=always(FAKE_TIMES))
    vsd.follow(student)
    wake(vsd.fake, seed=2), wake(vsd.weighting_head, seed=3)
    return student, teacher, vsd.double()


def gradients(loss, module):
    """One gradient per parameter; None where there is no path."""
    return torch.autograd.grad(
        loss, list(module.parameters()), retain_graph=True, allow_unused=True
    )


def terms_by_hand(student, teacher, vsd):
    """Both losses, and terms that have their gradients without any stop-gradient in a square.

    -2 e^w / D <sigma_data F, direction> for the student, e^w / D ||direction||^2 - w for the head,
    D = 3 elements, means over the batch.
    """
    torch.manual_seed(4)
    z, noise, fake_noise = (SIGMA * torch.randn(5, 3, dtype=torch.float64) for _ in range(3))
    F = student(z / SIGMA, torch.full((5,), T_MAX, dtype=torch.float64), LABELS, SCALES)
    drawn = (math.cos(T_MAX) * z - math.sin(T_MAX) * SIGMA * F).detach()
    t = TIMES[:, None]
    u = (t.cos() * drawn + t.sin() * noise) / SIGMA
    F_class, F_none = teacher(u, TIMES, LABELS), teacher(u, TIMES, None)
    F_pre = F_none + SCALES[:, None] * (F_class - F_none)
    direction = (F_pre - vsd.fake(u, TIMES, LABELS, SCALES)).detach()
    w = vsd.weighting_head(TIMES)
    value = (w.exp() * direction.square().mean(1) - w).mean()
    pull = (-2 * w.detach().exp() * (SIGMA * F * direction).mean(1)).mean()
    t = FAKE_TIMES[:, None]
    F_fake = vsd.fake((t.cos() * drawn + t.sin() * fake_noise) / SIGMA, FAKE_TIMES, LABELS, SCALES)
    target = (t.cos() * fake_noise - t.sin() * drawn) / SIGMA
    return value, pull, (F_fake - target).square().mean()


def test_each_network_is_moved_by_its_own_term_alone(randn):
    """Values and gradients by hand; where a stop-gradient stands, there is no path at all."""
    student, teacher, vsd = networks()
    torch.manual_seed(4)
    bound, guided = Bound(student, LABELS, SCALES), Guided(teacher, Conditions(LABELS), SCALES)
    found, fake = both(vsd.loss(bound, guided, PATH, randn(5, 3)))
    value, pull, by_hand = terms_by_hand(student, teacher, vsd)
    torch.testing.assert_close(found, value)
    torch.testing.assert_close(fake, by_hand)
    for one, other, module in (
        (found, pull, student),
        (found, value, vsd.weighting_head),
        (fake, by_hand, vsd.fake),
    ):
        pairs = list(zip(gradients(one, module), gradients(other, module), strict=True))
        assert max(float(expected.abs().max()) for _, expected in pairs) > 1e-3
        for gradient, expected in pairs:
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    for loss, strangers in (
        (found, (vsd.fake, teacher)),
        (fake, (student, teacher, vsd.weighting_head)),
    ):
        for stranger in strangers:
            assert all(gradient is None for gradient in gradients(loss, stranger))


def test_the_module_weighs_the_student_s_term_and_adds_both(randn):
    """Consistency loss + 0.3 L_VSD + L_fake, of a second network that is a copy."""
    student, teacher, vsd = networks()
    module = ConsistencyModule(
        student,
        TeacherVelocity(),
        teacher,
        init=None,
        path=PATH,
        guidance=GuidanceProposal(),
        terms=[vsd],
    ).double()
    for one, other in zip(vsd.fake.parameters(), student.parameters(), strict=True):
        assert one is not other
        assert torch.equal(one, other)
    module._trainer = SimpleNamespace(global_step=10**6)
    outputs = module.training_step(Batch(SIGMA * randn(5, 3), LABELS), 0, (TIMES, None))
    logged = outputs["logs"]
    added = 0.3 * logged["train/vsd"] + logged["train/fake"]
    torch.testing.assert_close(outputs["loss"], outputs["sample_loss"].mean() + added)
    assert float(logged["train/fake"].detach()) > 0.1


def test_both_networks_are_trained_and_neither_teacher_nor_average_of_the_second():
    """The second network gets its own parameter group, and no gradient from the student's loss."""
    module = ConsistencyModule(mlp(), TeacherVelocity(), mlp(), path=PATH, terms=[AdaptiveVSD()])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer(3).fit(module, loader())
    moved = {
        ".".join(name.split(".")[:-2] if name.startswith("terms") else name.split(".")[:2])
        for name, value in module.state_dict().items()
        if value.is_floating_point() and not torch.equal(value, before[name])
    }
    assert {"terms.0.weighting_head", "ema.network"} <= moved
    assert any(name.startswith("terms.0.fake") for name in moved)
    assert any(name.startswith("student") for name in moved)
    assert len(module.configure_optimizers().param_groups) == 3


def test_vsd_needs_a_teacher():
    module = ConsistencyModule(mlp(), PairVelocity(), path=PATH, terms=[AdaptiveVSD()])
    with pytest.raises(ValueError, match="AdaptiveVSD needs a teacher, got none"):
        trainer(1).fit(module, loader())
