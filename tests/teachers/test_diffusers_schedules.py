# SPDX-License-Identifier: Apache-2.0
"""Tables of noise by the configurations of diffusers' schedulers."""

import math

import diffusers
import pytest
import torch

from scm_lightning.core import TrigFlow
from scm_lightning.teachers.diffusers_schedules import process_of

PATH = TrigFlow(0.7)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("DDPMScheduler", {}),
        ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        (
            "PNDMScheduler",
            {"beta_start": 8.5e-4, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        ),
        ("UniPCMultistepScheduler", {"trained_betas": [0.01 + 0.002 * n for n in range(50)]}),
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}),
        ("CogVideoXDDIMScheduler", {"snr_shift_scale": 2.0}),
    ],
)
def test_tables_are_those_of_the_papers(name, settings):
    """Written out in float64; diffusers computes them in float32."""
    scheduler = getattr(diffusers, name)(**settings)
    found = torch.tensor(process_of(scheduler, "v_prediction", PATH).alphas_bar).double()
    n = torch.arange(1001).double() / 1000
    if "trained_betas" in settings:
        betas = torch.tensor(settings["trained_betas"]).double()
    elif settings.get("beta_schedule") == "squaredcos_cap_v2":
        bar = ((n + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    elif "rescale_betas_zero_snr" in settings:
        betas = torch.linspace(1e-4, 0.02, 1000).double()
    else:
        betas = torch.linspace(8.5e-4**0.5, 0.012**0.5, 1000).double() ** 2
        betas = torch.linspace(1e-4, 0.02, 1000).double() if name == "DDPMScheduler" else betas
    kept = (1 - betas).cumprod(0)
    if "rescale_betas_zero_snr" in settings:
        root = kept.sqrt()
        kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    if "snr_shift_scale" in settings:
        kept = kept / (2.0 + (1 - 2.0) * kept)
    torch.testing.assert_close(found, kept, rtol=2e-4, atol=1e-6)
