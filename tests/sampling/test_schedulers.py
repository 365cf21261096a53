# SPDX-License-Identifier: Apache-2.0
r"""Every sampler against diffusers' scheduler of the same method, on the same network and grid.

They work in EDM's variables, x / cos(t) at noise level sigma_data tan(t); the network is called at
the state and the time that these stand for. What F they are told as "v_prediction", what noise as
"epsilon": (x - D) / sigma = z_hat / sigma_data.
"""

import math

import diffusers
import pytest
import torch
from gaussian import PATH
from torch import Tensor

from scm_lightning.core import expand_time
from scm_lightning.sampling import sample_consistency, sample_ode, time_grid

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # inside diffusers

NUM = 18
WEIGHTS = torch.randn(3, 3, generator=torch.Generator().manual_seed(1)).double()
EDM = {"sigma_data": PATH.sigma_data, "prediction_type": "v_prediction"}


def network(u: Tensor, t: Tensor) -> Tensor:
    """Some smooth function, of slope about 1 in u and t, and wilder than a denoiser's."""
    return torch.tanh(u @ WEIGHTS + expand_time(torch.sin(2 * t), u))


def scheduled(scheduler, noise, times, told, levels=None):
    """What a scheduler makes of the noise, being told what `told` makes of F, x_t and t."""
    scheduler.set_begin_index(0)
    levels = scheduler.sigmas if levels is None else levels
    x = noise / math.cos(times[0])
    for call, timestep in enumerate(scheduler.timesteps):
        t = PATH.t_from_sigma(levels[call]).expand(len(x))
        x_t = expand_time(t, x).cos() * x
        output = told(network(x_t / PATH.sigma_data, t), x_t, t)
        scheduler.is_scale_input_called = True
        x = scheduler.step(output, timestep, x).prev_sample
    return x


def doubled(scheduler, num=NUM):
    """A scheduler whose own grid, in float32, is calculated with in float64; and the grid."""
    scheduler.set_timesteps(num)
    for name in ("sigmas", "sigmas_interpol"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler, PATH.t_from_sigma(torch.unique_consecutive(scheduler.sigmas)).tolist()


def as_F(F, x_t, t):
    return F


def as_noise(F, x_t, t):
    return PATH.noise(F, x_t, t) / PATH.sigma_data


def test_ddim_is_edms_euler(randn):
    """On the same grid, to the float32 that it keeps its state in: half of 2^-22 at every step."""
    scheduler, times = doubled(diffusers.EDMEulerScheduler(**EDM))
    torch.testing.assert_close(times, time_grid(NUM, PATH), rtol=NUM * 2.0**-23, atol=0)
    noise = PATH.sigma_data * randn(5, 3)
    found = sample_ode(network, noise, times, path=PATH, solver="ddim")
    assert float(noise.abs().max()) < 4
    expected = scheduled(scheduler, noise, times, as_F)
    torch.testing.assert_close(found, expected, rtol=0, atol=NUM * 2.0**-22)


def test_dpm_plus_plus_is_diffusers_multistep_solver(randn):
    scheduler, times = doubled(diffusers.EDMDPMSolverMultistepScheduler(**EDM))
    noise = PATH.sigma_data * randn(5, 3)
    found = sample_ode(network, noise, times, path=PATH, solver="dpm++")
    expected = scheduled(scheduler, noise, times, as_F)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_heun_is_diffusers_heun(randn):
    scheduler, times = doubled(diffusers.HeunDiscreteScheduler(use_karras_sigmas=True))
    assert len(scheduler.timesteps) == 2 * NUM - 1
    noise = PATH.sigma_data * randn(5, 3)
    found = sample_ode(network, noise, times, path=PATH, solver="heun")
    expected = scheduled(scheduler, noise, times, as_noise)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_dpm_2s_is_diffusers_midpoint_method(randn):
    """KDPM2: Euler to the geometric mean of two noise levels; its means are in float32."""
    scheduler, times = doubled(diffusers.KDPM2DiscreteScheduler(use_karras_sigmas=True))
    levels = [
        (scheduler.sigmas_interpol if call % 2 else scheduler.sigmas)[call]
        for call in range(2 * NUM - 1)
    ]
    noise = PATH.sigma_data * randn(5, 3)
    found = sample_ode(network, noise, times, path=PATH, solver="dpm-2s")
    expected = scheduled(scheduler, noise, times, as_noise, levels)
    torch.testing.assert_close(found, expected, rtol=0, atol=NUM * 2.0**-22)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm-2s", "dpm++"])
def test_the_solvers_differ_by_more_than_those_bounds(randn, solver):
    """On the coarse grid of the comparisons, so that each of them tells its method."""
    noise, times = PATH.sigma_data * randn(5, 3), time_grid(NUM, PATH)
    found = sample_ode(network, noise, times, path=PATH, solver=solver)
    for other in {"ddim", "heun", "dpm-2s", "dpm++"} - {solver}:
        distance = found - sample_ode(network, noise, times, path=PATH, solver=other)
        assert float(distance.abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("options", "shift"),
    [
        ({"num_inference_steps": 1, "intermediate_timesteps": None}, 4e-6),
        ({"num_inference_steps": 2}, 4e-6),
        ({"num_inference_steps": 3, "intermediate_timesteps": None}, 4e-6),
        ({"num_inference_steps": 3, "timesteps": [1.5, 1.1, 0.4, 0.0]}, 0.0),
    ],
)
def test_consistency_sampling_is_diffusers_scm_step_by_step(randn, options, shift):
    """Every x0 of its default times, 1.57080 and 1.3, of more steps and of times given.

    Its start is 4e-6 above pi/2, where x0 = -sigma_data F moves by x and dF/dt times that, and the
    later ones with it; it rounds angles and their cosines to float32.
    """
    scheduler = diffusers.SCMScheduler(sigma_data=PATH.sigma_data)
    own = {"max_timesteps": None, "intermediate_timesteps": None} if shift == 0 else {}
    scheduler.set_timesteps(**options, **own)
    start, found = PATH.sigma_data * randn(5, 3), []
    sample_consistency(
        network,
        start,
        scheduler.timesteps[:-1].tolist(),
        path=PATH,
        generator=torch.Generator().manual_seed(2),
        on_step=lambda time, x0: found.append((time, x0)),
    )
    # It draws in float32; of less than 16 numbers, torch draws the same ones in float64.
    x, generator = start, torch.Generator().manual_seed(2)
    for (time, x0), timestep in zip(found, scheduler.timesteps[:-1], strict=True):
        F = network(x / PATH.sigma_data, timestep.double().expand(5))
        step = scheduler.step(PATH.sigma_data * F, timestep, x, generator=generator)
        assert time == 0.0
        torch.testing.assert_close(
            x0, step.pred_original_sample, rtol=0, atol=10 * shift + len(found) * 2.0**-22
        )
        x = step.prev_sample
