# SPDX-License-Identifier: Apache-2.0
"""diffusers models under dual numbers, where torch's own forward mode fails."""

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from tiny import wake
from torch import nn

from scm_lightning.autodiff import TangentComputer
from scm_lightning.core import Bound
from scm_lightning.networks import DiffusersNetwork

SIGMA_DATA = 0.7


def unet():
    """With attention, down- and upsampling, and classes."""
    return UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        num_class_embeds=3,
    )


def dit():
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=2,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
        norm_num_groups=8,
    )


@pytest.mark.parametrize("build", [unet, dit])
def test_derivative_matches_differences(build, randn):
    """And the value is that of the model called as diffusers calls it."""
    model = build()
    network = wake(DiffusersNetwork(model), std=0.15).double().eval()
    x_t, dx_dt = randn(5, 2, 8, 8), randn(5, 2, 8, 8)
    t, labels = torch.linspace(0.2, 1.5, 5).double(), torch.tensor([0, 1, 2, 0, 1])
    F, J = TangentComputer("dual")(Bound(network, labels), x_t, t, dx_dt, sigma_data=SIGMA_DATA)

    def difference(h):
        after = network((x_t + h * dx_dt) / SIGMA_DATA, t + h, labels)
        before = network((x_t - h * dx_dt) / SIGMA_DATA, t - h, labels)
        return (t.cos() * t.sin())[:, None, None, None] * (after - before) / (2 * h)

    with torch.no_grad():
        # diffusers embeds the time in float32, in whose rounding a small step is lost: eps / h is
        # 1.5e-5. Of two large ones the error of second order cancels. Measured: 4e-7.
        expected = (4 * difference(2**-7) - difference(2**-6)) / 3
        torch.testing.assert_close(J, expected, rtol=0, atol=1.5e-5)
        torch.testing.assert_close(F, network(x_t / SIGMA_DATA, t, labels))
    assert float(J.abs().max()) > 1e-3
    F.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name


def test_stock_forward_mode_fails_on_the_unet_and_ours_does_not(randn):
    """What dual numbers, and the repairs of forward mode, are for: torch 2.13 refuses it."""
    network = wake(DiffusersNetwork(unet()), std=0.15).double().eval()
    x_t, t = randn(5, 2, 8, 8), torch.linspace(0.2, 1.5, 5).double()
    labels = torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(lambda u, t: network(u, t, labels), (x_t, t), (x_t, t))
    bound = Bound(network, labels)
    found = [
        TangentComputer(method)(bound, x_t, t, x_t, sigma_data=SIGMA_DATA)
        for method in ("func", "dual")
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # time in float32


def test_labels_of_a_model_without_classes_are_refused(randn):
    """diffusers' own message names neither the model nor its option."""
    plain = UNet2DModel(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        in_channels=2,
        out_channels=2,
    )
    network = DiffusersNetwork(plain)
    u, t = randn(5, 2, 8, 8).float(), torch.linspace(0.1, 1.5, 5)
    assert network(u, t).shape == u.shape
    with pytest.raises(ValueError, match="UNet2DModel was built without classes but got labels; s"):
        network(u, t, torch.zeros(5, dtype=torch.int64))


def test_other_models_are_refused(randn):
    with pytest.raises(ValueError, match="found none in Linear; write an adapter"):
        DiffusersNetwork(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="take no guidance scale"):
        DiffusersNetwork(unet())(randn(5, 2, 8, 8), torch.ones(5), None, torch.ones(5))
