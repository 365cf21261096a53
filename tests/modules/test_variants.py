# SPDX-License-Identifier: Apache-2.0
"""The paper's variants, each tied to the plain method: guidance, segments, dsCD."""

from types import SimpleNamespace

import pytest
import torch
from gaussian import DATA_STD, PATH, ExactTeacher, std, velocity
from tiny import FixedTimes, GaussianBatches, loader, mlp, trainer, wake
from torch import nn
from torch.utils.data import DataLoader

from scm_lightning import ConsistencyModule, DiffusionModule
from scm_lightning.core import (
    NULL_LABEL,
    Bound,
    Conditions,
    GuidanceProposal,
    Guided,
    TangentWarmup,
    TimeGrid,
    expand_time,
)
from scm_lightning.data import Batch, SampleRequest
from scm_lightning.objectives import (
    AdaptiveVSD,
    Consistency,
    Discrete,
    PairVelocity,
    Point,
    Segments,
    TeacherVelocity,
)
from scm_lightning.sampling import FewStepSampling

T = torch.tensor([0.05, 0.4, 0.9, 1.3, 1.55], dtype=torch.float64)


def prepared(module, t=T):
    """A module outside a trainer, at fixed times, past its warm-up."""
    module = module.double()
    module.objective.times = FixedTimes(t)
    module._trainer = SimpleNamespace(global_step=10**6)
    return module


def losses_and_gradients(module, batch):
    torch.manual_seed(3)
    module.zero_grad()
    loss = module.training_step(batch, 0)["loss"]
    loss.backward()
    return [loss, *(p.grad for p in module.student.parameters() if p.grad is not None)]


def difference(one, other):
    one, other = (torch.cat([each.flatten() for each in side]) for side in (one, other))
    return float(((one - other).norm() / one.norm()).detach())


class LabelledBatches(GaussianBatches):
    def __iter__(self):
        for batch in super().__iter__():
            yield Batch(batch.x0, torch.arange(len(batch.x0)) % 3)


def test_discrete_training_tends_to_continuous(randn):
    """Loss and gradients of dsCD and sCD, at the same times, as the intervals shrink."""
    batch, errors = Batch(PATH.sigma_data * randn(5, 3), None), []
    for num in (1000, 10_000, 100_000):
        t = TimeGrid(num).interval(T, PATH)[1]
        found = []
        for objective in (Consistency(), Discrete(num)):
            module = ConsistencyModule(
                *(wake(mlp()), TeacherVelocity(), wake(mlp(), seed=1), objective),
                init=None,
                path=PATH,
            )
            found.append(losses_and_gradients(prepared(module, t), batch))
        errors.append(difference(*found))
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)


def test_discrete_training_draws_its_times_from_the_grid():
    t, _ = Discrete(7).sample_times(200, PATH, "cpu")
    drawn, grid = set(t.tolist()), TimeGrid(7).times(PATH).float()[1:]
    assert drawn <= set(grid.tolist())
    assert len(drawn) > 3


class ExactSegments(nn.Module):
    """F of the exact model of segments of Gaussian data."""

    def forward(self, u, t, labels, guidance, t_end):
        angle = t - t_end
        F = (angle.cos() - std(t_end) / std(t)) / angle.sin()
        return expand_time(F, u) * u


def test_the_exact_model_of_segments_has_no_tangent_and_is_sampled_exactly(randn):
    """Gaussian data: g = 0 at every time; M jumps end at s / std(t_max) times the noise."""
    module = ConsistencyModule(mlp(two_times=True), objective=Segments(3), path=PATH)
    module.ema.network = ExactSegments()
    x_t = PATH.sigma_data * randn(5, 3)
    at = Point(x_t, *module.times_at(T), x_t, x_t, velocity(x_t, T), velocity)
    _, g = module.objective.tangent(Bound(ExactSegments()), at, PATH, r=1.0)
    assert float(g.abs().max()) < 1e-9
    (draw,) = module.draws().values()
    t_max = torch.tensor(PATH.t_max(), dtype=torch.float64)
    torch.testing.assert_close(draw(x_t, Conditions(), None), DATA_STD / std(t_max) * x_t)
    drawn = module.validation_step(SampleRequest(torch.arange(5), None, (3,), 4), 0)
    assert {name: samples.nfe for name, samples in drawn.items()} == {"3_step": 3}


def test_in_the_lowest_segment_it_is_the_plain_method(randn):
    """A network that is told s = 0 has the loss and gradients of one that is told nothing."""
    batch, t = Batch(PATH.sigma_data * randn(5, 3), None), T / 4
    plain = ConsistencyModule(wake(mlp()), path=PATH)
    network = mlp(two_times=True)
    network.load_state_dict(network.state_dict() | plain.student.state_dict())
    module = ConsistencyModule(network, objective=Segments(3), path=PATH)
    one, other = (losses_and_gradients(prepared(each, t), batch) for each in (plain, module))
    names = [name for name, p in network.named_parameters() if p.grad is not None]
    other = [x for x, name in zip(other, ["loss", *names], strict=True) if ".end." not in name]
    assert difference(one, other) < 1e-12
    assert list(plain.draws()) == ["1_step", "2_step"]


def test_a_student_of_segments_trains_and_starts_as_its_teacher():
    student = mlp(two_times=True)
    parts = (student, PairVelocity(), wake(mlp(), 1), Segments(4))
    module = ConsistencyModule(*parts, path=PATH)
    u, t = torch.ones(5, 3), torch.full((5,), 0.8)
    teacher = module.teacher(u, t)
    torch.testing.assert_close(student(u, t, None, None, t), teacher)
    trainer(3).fit(module, loader())
    assert float(student.conditioning.end.linear.weight.detach().norm()) > 0


def test_a_guided_student_starts_as_its_teacher_and_learns_the_scale():
    """Its scale says nothing at first, whatever it is; after some steps it does."""
    teacher, student = wake(mlp(num_classes=3), 1), mlp(num_classes=3, guided=True)
    module = ConsistencyModule(
        student,
        TeacherVelocity(),
        teacher,
        path=PATH,
        guidance=GuidanceProposal(),
        sampling=FewStepSampling(guidance=1.4),
    )
    u, t, labels = torch.ones(5, 3), torch.full((5,), 0.8), torch.arange(5) % 3
    for scale in (1.0, 2.0):
        F = student(u, t, labels, torch.full((5,), scale))
        torch.testing.assert_close(F, teacher(u, t, labels))
    trainer(3).fit(module, DataLoader(LabelledBatches(5), batch_size=None))
    assert float(student.conditioning.guidance.linear.weight.detach().norm()) > 0
    drawn = module.test_step(SampleRequest(torch.arange(5), labels, (3,), 4), 0)
    assert [each.nfe for each in drawn.values()] == [70, 2, 1, 2]
    assert all(each.x0.shape == (5, 3) for each in drawn.values())


def test_the_teacher_is_guided_by_the_scale_the_student_is_told(randn):
    """dx/dt = sigma_data (F_none + s (F_class - F_none)), with s of every sample."""
    teacher = wake(mlp(num_classes=3), 1).double()
    x_t, labels, s = randn(5, 3), torch.arange(5) % 3, torch.linspace(1, 2, 5).double()
    found = TeacherVelocity()(x_t, T, x_t, x_t, PATH, Guided(teacher, Conditions(labels), s))
    u = x_t / PATH.sigma_data
    F_class, F_none = teacher(u, T, labels), teacher(u, T, None)
    expected = PATH.sigma_data * (F_none + s[:, None] * (F_class - F_none))
    torch.testing.assert_close(found, expected)


def test_dropped_labels_teach_the_model_without_class():
    """The network sees each label and none; without dropout, every label."""
    seen = []

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, u, t, labels):
            seen.extend(labels.tolist())
            return self.weight * u

    for probability, expected in ((0.3, {-1, 0, 1, 2}), (0.0, {0, 1, 2})):
        seen.clear()
        module = DiffusionModule(Recorder(), path=PATH, condition_dropout=probability)
        trainer(20).fit(module, DataLoader(LabelledBatches(5), batch_size=None))
        assert set(seen) == expected
    with pytest.raises(ValueError, match=r"probability below 1, got 1\.0"):
        DiffusionModule(mlp(), condition_dropout=1.0)


def test_labels_are_dropped_at_the_rate_asked_for():
    """In training, each label alone: within four standard deviations; the others stay in place."""
    torch.manual_seed(0)
    rate, num, seen = 0.23, 20_001, []
    labels = torch.arange(num) % 3

    class Recorder(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, u, t, labels):
            seen.append(labels)
            return self.weight * u

    module = DiffusionModule(Recorder(), path=PATH, condition_dropout=rate)
    trainer(2).fit(module, DataLoader(LabelledBatches(num), batch_size=None))
    for found in seen:
        gone = found == NULL_LABEL
        deviation = (rate * (1 - rate) / num) ** 0.5
        assert abs(float(gone.double().mean()) - rate) < 4 * deviation
        assert torch.equal(found[~gone], labels[~gone])
    both = ((seen[0] == NULL_LABEL) & (seen[1] == NULL_LABEL)).double().mean()
    assert abs(float(both) - rate**2) < 4 * (rate**2 * (1 - rate**2) / num) ** 0.5


def test_uncertainty_weighting_by_hand(randn):
    """e^w L - w, with a gradient for the head: at its optimum e^-w is the loss."""
    module = DiffusionModule(wake(mlp()), path=PATH, weighting="learned", weighting_lr=0.5).double()
    wake(module.weighting_head, 2)
    module.times = FixedTimes(T)
    batch = Batch(PATH.sigma_data * randn(5, 3), None)
    torch.manual_seed(3)
    loss = module.training_step(batch, 0)["loss"]
    torch.manual_seed(3)
    x_t, z = PATH.add_noise(batch.x0, T)
    F = module.network(x_t / PATH.sigma_data, T)
    target = (T.cos()[:, None] * z - T.sin()[:, None] * batch.x0) / PATH.sigma_data
    w = module.weighting_head(T)
    expected = (w.exp() * (F - target).square().mean(1) - w).mean()
    torch.testing.assert_close(loss, expected)
    rates = [group["lr"] for group in module.configure_optimizers().param_groups]
    assert rates == [1e-3, 0.5]


def test_impossible_variants_are_refused():
    guided = {"guidance": GuidanceProposal(), "path": PATH}
    module = ConsistencyModule(mlp(num_classes=3, guided=True), PairVelocity(), **guided)
    with pytest.raises(ValueError, match="PairVelocity has no teacher; set guidance to null"):
        trainer(1).fit(module, loader())
    with pytest.raises(ValueError, match=r"own architecture, but of \w+ it copied 0 weights"):
        ConsistencyModule(mlp(), TeacherVelocity(), ExactTeacher())
    module = ConsistencyModule(mlp(), objective=Segments(2), path=PATH)
    with pytest.raises(ValueError, match="two_times=False got a second time"):
        trainer(1).fit(module, loader())
    with pytest.raises(ValueError, match="has at least 2, got 1; with one it is the objective"):
        Segments(1)
    with pytest.raises(ValueError, match="discrete time takes Algorithm 1's warm-up, got rcm"):
        Discrete(8, warmup=TangentWarmup(kind="rcm"))
    segments = Segments(2)
    module = ConsistencyModule(
        *(mlp(two_times=True), TeacherVelocity(), mlp(), segments, None, PATH),
        terms=[AdaptiveVSD()],
    )
    with pytest.raises(ValueError, match=r"AdaptiveVSD calls the student as F\(u, t\)"):
        trainer(1).fit(module, loader())
