# SPDX-License-Identifier: Apache-2.0
"""alpha-Flow: its target at both ends of alpha and on Gaussian data, its schedule, its step."""

import pytest
import torch
from gaussian import DATA_STD, PATH, std, velocity
from tiny import loader, mlp, trainer, wake
from torch import nn

from scm_lightning import ConsistencyModule
from scm_lightning.core import TRIGONOMETRIC, Bound, Conditions, TimeProposal, expand_time
from scm_lightning.modules import FlatCosine
from scm_lightning.networks import MLP
from scm_lightning.objectives import AlphaFlow, AlphaSchedule, Point
from scm_lightning.objectives.alpha_flow import alpha_flow_target

SIGMA = PATH.sigma_data
T = torch.tensor([0.3, 0.7, 1.1, 1.4, 1.55], dtype=torch.float64)
S = torch.tensor([0.0, 0.2, 1.0, 0.5, 1.5], dtype=torch.float64)


class ExactMap(nn.Module):
    """F* of TrigFlow's map on Gaussian data: X(x, t, s) = x std(s) / std(t)."""

    def forward(self, u, t, labels=None, guidance=None, t_end=None):
        angle = t - t_end
        return expand_time((angle.cos() - std(t_end) / std(t)) / angle.sin(), u) * u


def test_alpha_of_one_matches_velocities_at_every_end(randn):
    F_m, u, w = (randn(5, 2, 3) for _ in range(3))
    torch.testing.assert_close(alpha_flow_target(F_m, u, w, T, S, S), w)
    torch.testing.assert_close(alpha_flow_target(F_m, u, w, T, T, T), w)


@pytest.mark.parametrize("alpha", [0.9, 0.5, 0.1])
def test_along_a_chord_of_the_exact_map_the_target_is_exact(randn, alpha):
    """With w = F*(u, t, m) the step ends on the ODE, and F* at t is what it should be."""
    F, u = ExactMap(), randn(5, 2, 3)
    m = T - alpha * (T - S)
    w = F(u, T, t_end=m)
    u_m = TRIGONOMETRIC.jump(w, u, T, m, sigma_data=1.0)
    torch.testing.assert_close(u_m, expand_time(std(m) / std(T), u) * u)
    target = alpha_flow_target(F(u_m, m, t_end=S), u, w, T, m, S)
    torch.testing.assert_close(target, F(u, T, t_end=S))


def pulls(randn, alphas):
    """What a network is pulled by, for some alphas and for their limit."""
    network = wake(mlp(two_times=True)).double()
    x_t = SIGMA * randn(5, 3)
    at = Point(x_t, T, S, x_t, x_t, velocity(x_t, T), velocity)
    objective, student = AlphaFlow(), Bound(network)
    found = [objective._short_step(student, at, PATH, alpha)[1].detach() for alpha in alphas]
    return found, objective._derivative(student, at, PATH)[1]


def test_short_steps_tend_to_the_residual_of_the_map(randn):
    """(target - F) / alpha to (t - s) / sin(t - s) G, with an error of first order."""
    alphas = (1e-3, 1e-4, 1e-5)
    found, limit = pulls(randn, alphas)
    scaled = zip(found, alphas, strict=True)
    errors = [float((each / alpha - limit).norm() / limit.norm()) for each, alpha in scaled]
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.1)
    assert errors[2] < 1e-4


def test_the_exact_map_is_not_pulled(randn):
    """By the derivative, at ends before t; where they are equal, F is the velocity."""
    x_t = SIGMA * randn(5, 3)
    at = Point(x_t, T, S, x_t, x_t, velocity(x_t, T), velocity)
    F, pull = AlphaFlow()._derivative(Bound(ExactMap()), at, PATH)
    assert float(pull.abs().max()) < 1e-9
    torch.testing.assert_close(SIGMA * F[0], SIGMA * ExactMap()(x_t / SIGMA, T, t_end=S)[0])


def test_the_schedule_by_hand():
    schedule = AlphaSchedule(start=100, end=300, gamma=25.0, cut=5e-3)
    assert [schedule.alpha(step) for step in (0, 100, 300, 10**6)] == [1.0, 1.0, 0.0, 0.0]
    assert schedule.alpha(200) == pytest.approx(0.5)
    expected = 1 - torch.sigmoid(torch.tensor(25.0 * (210 - 200) / 200, dtype=torch.float64))
    assert schedule.alpha(210) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="start < end"):
        AlphaSchedule(300, 100)


@pytest.mark.parametrize("step", [0, 200, 1000])
def test_the_step_by_hand(randn, step):
    """d^2 / (d^2 + c) of the mean square, and velocity matching where s = t."""
    schedule = AlphaSchedule(100, 300)
    network = wake(mlp(two_times=True)).double()
    module = ConsistencyModule(network, objective=AlphaFlow(schedule=schedule), path=PATH).double()
    x0, ends = SIGMA * randn(5, 3), torch.where(T > 1.2, T, S)
    torch.manual_seed(3)
    x_t, z = PATH.add_noise(x0, T)
    at = Point(x_t, T, ends, x0, z, PATH.velocity(x0, z, T), velocity)
    found = module.objective.loss(Bound(network), at, PATH, step)
    F = network(x_t / SIGMA, T, None, None, ends)
    matching = (at.dx_dt / SIGMA - F).square().mean(1)
    torch.testing.assert_close(found.norm[3:] ** 2 / 3, matching[3:].detach())
    squared = found.norm**2 / 3
    torch.testing.assert_close(found.losses, squared / (squared + 1e-3))
    (gradient,) = torch.autograd.grad(found.losses[3], network.output.weight, retain_graph=True)
    weighted = matching[3] / (matching[3].detach() + 1e-3)
    (expected,) = torch.autograd.grad(weighted, network.output.weight)
    torch.testing.assert_close(gradient, expected)


def test_it_trains_through_all_of_its_schedule():
    objective = AlphaFlow(schedule=AlphaSchedule(2, 6))
    module = ConsistencyModule(mlp(two_times=True), objective=objective, path=PATH)
    before = module.student.output.weight.clone()
    trainer(9).fit(module, loader())
    assert not torch.equal(module.student.output.weight, before)
    assert list(module.draws()) == ["1_step", "2_step"]


def test_an_objective_may_need_a_teacher_and_train_a_network_of_its_own():
    """Without the one it is refused; the other, in no group of the optimizer, is named."""

    class Own(AlphaFlow):
        needs_teacher = True

        def __init__(self):
            super().__init__()
            self.critic = nn.Linear(3, 1)

    network = mlp(two_times=True)
    with pytest.raises(ValueError, match="Own needs a teacher, got none"):
        trainer(1).fit(ConsistencyModule(network, objective=Own(), path=PATH), loader())
    Own.needs_teacher = False
    module = ConsistencyModule(network, objective=Own(), path=PATH)
    with pytest.warns(UserWarning, match="2 parameters .* the first of them objective.critic.weig"):
        trainer(1).fit(module, loader())


def test_a_network_without_a_derivative_is_refused_at_the_first_step():
    """Thousands of steps before one is taken; a network that has one draws what it drew anyway."""

    class Escapes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, u, t, labels=None, guidance=None, t_end=None):
            return self.layer(u) * float(u.mean())

    module = ConsistencyModule(Escapes(), objective=AlphaFlow(), path=PATH)
    with pytest.raises(ValueError, match="in Escapes: "):
        trainer(1).fit(module, loader())
    module = ConsistencyModule(
        wake(mlp(two_times=True, dropout=0.3)), objective=AlphaFlow(), path=PATH
    )
    batch, losses = next(iter(loader())), []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(module.training_step(batch, 0)["loss"])
    assert torch.equal(*losses)


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="share_of_intervals must be a probability and c positive"):
        AlphaFlow(share_of_intervals=1.2)


@pytest.mark.slow
def test_it_learns_gaussian_data_in_closed_form():
    """One step from random weights: within 10 % of s / std(t_max) times the noise."""
    torch.manual_seed(0)
    module = ConsistencyModule(
        MLP((3,), model_channels=64, num_blocks=2, emb_channels=64, two_times=True),
        objective=AlphaFlow(TimeProposal(0.0, 2.0), schedule=AlphaSchedule(0, 500), c=100.0),
        path=PATH,
        optimizer=lambda groups: torch.optim.Adam(groups, lr=2e-3),
        lr_schedule=lambda optimizer: FlatCosine(optimizer, total_steps=3000),
    )
    module.batch_checks.first_samples = None  # the data's own scale is 0.3 here, on purpose
    trainer(3000).fit(module, loader(batch_size=256, scale=1.0))
    noise = SIGMA * torch.randn(2000, 3)
    found = module.draws()["1_step"](noise, Conditions(), None)
    expected = DATA_STD / std(torch.tensor(PATH.t_max())) * noise
    error = float((found - expected).norm() / expected.norm())
    print(f"relative error of one step: {error:.4f}")
    assert error < 0.1
