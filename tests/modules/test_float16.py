# SPDX-License-Identifier: Apache-2.0
"""Float16 autocast with a loss scale, as `16-mixed` trains on a GPU, here on a CPU."""

from types import SimpleNamespace

import pytest
import torch
from gaussian import PATH
from tiny import wake

from scm_lightning import ConsistencyModule, TangentComputer
from scm_lightning.core import TangentWarmup
from scm_lightning.data import Batch
from scm_lightning.networks import MLP, DiT, UNet
from scm_lightning.objectives import Consistency

SHAPE, NUM_STEPS, SCALE = (2, 4, 8), 20, 2.0**12


def networks():
    torch.manual_seed(0)
    unet = UNet(
        SHAPE,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attention_pixels=(8,),
        dropout=0.1,
    )
    mlp = MLP(SHAPE, model_channels=24, num_blocks=2)
    return [mlp, unet, DiT(SHAPE, model_channels=16, num_blocks=2, num_heads=2)]


@pytest.mark.parametrize("student", networks(), ids=lambda network: type(network).__name__)
def test_steps_in_float16_are_finite_and_none_is_lost(student, randn):
    """Twenty steps of Algorithm 1, at a quarter of the scale that torch's settles at, 2^14.

    Gradients of one to two, times 2^14, are within float16's range of 65504; by chance one is more.
    """
    torch.manual_seed(0)
    objective = Consistency(warmup=TangentWarmup(NUM_STEPS))
    module = ConsistencyModule(student, objective=objective, path=PATH)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    for step in range(NUM_STEPS):
        module._trainer = SimpleNamespace(global_step=step)
        batch = Batch(PATH.sigma_data * randn(7, *SHAPE).float(), None)
        with torch.autocast("cpu", torch.float16):
            loss = module.training_step(batch, 0)["loss"]
        assert loss.isfinite()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == SCALE  # or the step was left out
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert float(student.output.weight.detach().abs().max()) > 0  # it is zero at the start


@pytest.mark.parametrize("student", networks(), ids=lambda network: type(network).__name__)
def test_the_derivative_in_float16_is_near_that_in_float64(student, randn):
    """A float16 number has a relative error of 5e-4; dozens of layers make 1e-3 of it."""
    network = wake(student).eval().double()
    t = torch.tensor([0.02, 0.3, 0.9, 1.3, 1.5], dtype=torch.float64)
    x_t, dx_dt = (PATH.sigma_data * randn(5, *SHAPE) for _ in range(2))
    options = {"sigma_data": PATH.sigma_data}
    _, expected = TangentComputer("dual")(network, x_t, t, dx_dt, **options)
    with torch.autocast("cpu", torch.float16):
        _, found = TangentComputer("dual")(
            network.float(), x_t.float(), t.float(), dx_dt.float(), **options
        )
    error = float((found.double() - expected).norm() / expected.norm())
    assert error < 3e-3
