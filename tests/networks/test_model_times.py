# SPDX-License-Identifier: Apache-2.0
"""Times of other people's models, against the schedulers of diffusers."""

import diffusers
import pytest
import torch

from scm_lightning.networks import DiscreteTime, FlowTime

T = torch.linspace(0.05, 1.5, 7, dtype=torch.float64)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
@pytest.mark.parametrize(
    ("schedule", "ends"), [("linear", (1e-4, 0.02)), ("scaled_linear", (8.5e-4, 0.012))]
)
def test_discrete_times_are_those_of_the_scheduler(schedule, ends, sigma_data):
    """At the t of a step it is that step, and halfway in ln(s / a) it lies half a step further."""
    scheduler = diffusers.DDPMScheduler(1000, *ends, beta_schedule=schedule)
    kept = scheduler.alphas_cumprod.double()
    t = (((1 - kept) / kept).sqrt() / sigma_data).atan()
    time = DiscreteTime(*ends, root=schedule == "scaled_linear", sigma_data=sigma_data)
    steps = torch.arange(1000).double()
    torch.testing.assert_close(time(t), steps, rtol=0, atol=2e-3)  # theirs is float32
    halves = (t[1:].tan() * t[:-1].tan()).sqrt().atan()
    torch.testing.assert_close(time(halves), steps[1:] - 0.5, rtol=0, atol=2e-3)
    beyond = time(torch.tensor([1e-6, torch.pi / 2], dtype=torch.float64))
    torch.testing.assert_close(beyond, torch.tensor([0, 999], dtype=torch.float64))


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_flow_times_have_the_same_ratio_of_noise_to_data(sigma_data):
    s = FlowTime(sigma_data=sigma_data)(T)
    torch.testing.assert_close(s / (1 - s), sigma_data * T.tan())
    torch.testing.assert_close(FlowTime(1000, sigma_data=sigma_data)(T), 1000 * s)
    torch.testing.assert_close(FlowTime(from_noise=True, sigma_data=sigma_data)(T), 1 - s)
    ends = FlowTime()(torch.tensor([0.0, torch.pi / 2], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([0.0, 1.0], dtype=torch.float64))
