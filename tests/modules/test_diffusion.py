# SPDX-License-Identifier: Apache-2.0
"""The diffusion module: its loss by hand, what it learns, and how it draws samples."""

import math

import pytest
import torch
from gaussian import PATH, ExactTeacher
from tiny import loader, trainer
from torch import nn

from scm_lightning import DiffusionModule, TimeProposal
from scm_lightning.data import SampleRequest
from scm_lightning.modules import FlatCosine, InverseSqrt
from scm_lightning.networks import MLP
from scm_lightning.sampling import Churn, DiffusionSampling


class Linear(nn.Module):
    """F = weight u: one number, whose optimum is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, u, t, labels=None, guidance=None):
        return self.weight * u


def test_training_finds_the_optimal_velocity():
    """For data of standard deviation sigma_data the optimal F is 0; from 1 it gets there."""
    torch.manual_seed(0)
    network = Linear()
    nn.init.constant_(network.weight, 1.0)
    module = DiffusionModule(
        network, PATH, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05)
    )
    trainer(200).fit(module, loader(64))
    # What is left is the noise of the gradients: 0.015, the root mean square over twelve seeds.
    assert abs(float(network.weight.detach())) < 5 * 0.015


def test_samples_depend_on_seed_and_index_alone():
    """One order or several, the sixth sample is the same."""
    module = DiffusionModule(MLP((3,), model_channels=16, num_blocks=1), PATH)
    whole = SampleRequest(torch.arange(7), None, (3,), seed=4)
    part = SampleRequest(torch.tensor([5, 2]), None, (3,), seed=4)
    other = SampleRequest(torch.arange(7), None, (3,), seed=5)
    for name, samples in module.test_step(whole, 0).items():
        torch.testing.assert_close(module.test_step(part, 0)[name].x0, samples.x0[[5, 2]])
        assert not torch.equal(module.test_step(other, 0)[name].x0, samples.x0)
    assert {name: s.nfe for name, s in module.predict_step(whole, 0).items()} == {
        "noise": 0,
        "teacher": 35,
        "denoiser": 1,
    }


def test_samples_of_the_exact_network_have_the_data_s_scale():
    """Noise of standard deviation 0.7 becomes data of 0.3, which the denoiser alone blurs."""
    module = DiffusionModule(ExactTeacher(), PATH, sampling=DiffusionSampling(40))
    drawn = module.test_step(SampleRequest(torch.arange(3000), None, (3,), seed=0), 0)
    assert float(drawn["teacher"].x0.std()) == pytest.approx(0.3, rel=0.03)
    assert float(drawn["denoiser"].x0.std()) < 0.01


def test_schedule_by_hand():
    """Ramp to step 10, flat to step 40 of 100, cosine to 2 %; every group keeps its own rate."""
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))]},
        {"params": [nn.Parameter(torch.zeros(1))], "lr": 3.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = FlatCosine(optimizer, total_steps=100, ramp_steps=10, flat_share=0.4)
    rates = []
    for _ in range(101):
        rates.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx([0.1, 0.3])
    assert rates[9] == rates[40] == pytest.approx([1.0, 3.0])
    assert rates[70] == pytest.approx([0.51, 1.53])
    assert rates[100] == pytest.approx([0.02, 0.06])
    with pytest.raises(ValueError, match="need ramp_steps <= total_steps"):
        FlatCosine(optimizer, total_steps=5, ramp_steps=6)


@pytest.mark.parametrize(("ref_steps", "ramp_steps"), [(30, 8), (9, 20), (30, 0), (1, 3)])
def test_inverse_square_root_by_hand(ref_steps, ramp_steps):
    """alpha_ref / sqrt(max(step / t_ref, 1)), with a linear ramp that reaches 1 at its last step.

    A ramp may end before the fall starts or after; four times t_ref halves the rate.
    """
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))]},
        {"params": [nn.Parameter(torch.zeros(1))], "lr": 3.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.7)
    schedule = InverseSqrt(optimizer, ref_steps, ramp_steps)
    rates = []
    for _ in range(121):
        rates.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    for step, found in enumerate(rates):
        factor = 1.0 if step <= ref_steps else math.sqrt(ref_steps / step)
        if step + 1 < ramp_steps:
            factor *= (step + 1) / ramp_steps
        assert found == pytest.approx([0.7 * factor, 3.0 * factor], rel=1e-12)
    if (ref_steps, ramp_steps) == (30, 8):
        assert [rates[step][0] for step in (0, 7, 30, 120)] == pytest.approx(
            [0.0875, 0.7, 0.7, 0.35]
        )


def test_impossible_schedules_are_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    for ref_steps, ramp_steps, said in ((0, 5, "at least 1 .* got 0"), (5, -1, "0 .* got -1")):
        with pytest.raises(ValueError, match=said):
            InverseSqrt(optimizer, ref_steps, ramp_steps)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_schedule_moves_with_the_optimizer(accumulate):
    """Once per optimizer step, not per batch and not per epoch: the rate of step n is factor n."""
    used = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            loss = super().step(closure)
            used.append(self.param_groups[0]["lr"])
            return loss

    module = DiffusionModule(
        Linear(),
        PATH,
        optimizer=lambda groups: Recorder(groups, lr=0.7),
        lr_schedule=lambda optimizer: InverseSqrt(optimizer, ref_steps=2, ramp_steps=2),
    )
    trainer(6, accumulate_grad_batches=accumulate).fit(module, loader())
    assert used == pytest.approx([0.7 * f for f in (0.5, 1, 1, (2 / 3) ** 0.5, 0.5**0.5, 0.4**0.5)])


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="at least 2 solver steps"):
        DiffusionSampling(1)
    with pytest.raises(ValueError, match="churn needs a solver of single steps"):
        DiffusionSampling(solver="dpm++", churn=Churn(10.0))
    with pytest.raises(ValueError, match="P_std a positive one"):
        DiffusionModule(Linear(), times=TimeProposal(0.0, -1.0))
