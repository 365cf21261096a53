# SPDX-License-Identifier: Apache-2.0
"""Networks that are given an image, and conditions that are silent at the start of a student."""

import pytest
import torch
from tiny import wake

from scm_lightning.autodiff import TangentComputer
from scm_lightning.autodiff.dual import fallback_calls
from scm_lightning.core import Bound
from scm_lightning.networks import MLP, DiT, EDM2UNet, UNet

SHAPE, NUM = (2, 4, 6), 3
SMALL = {"model_channels": 16, "num_blocks": 1}
LEVELS = {**SMALL, "channel_mult": (1, 2), "attention_pixels": (6,)}
BUILDERS = {
    "mlp": lambda **options: MLP(SHAPE, **SMALL, **options),
    "dit": lambda **options: DiT(SHAPE, num_heads=2, **SMALL, **options),
    "unet": lambda **options: UNet(SHAPE, dropout=0.0, **LEVELS, **options),
}
EDM2 = {"edm2": lambda **options: EDM2UNet(SHAPE, channels_per_head=16, **LEVELS, **options)}


@pytest.fixture
def given(randn):
    t = torch.linspace(0.2, 1.4, NUM, dtype=torch.float64)
    return randn(NUM, *SHAPE), t, randn(NUM, *SHAPE), randn(NUM, 3, *SHAPE[1:])


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_the_derivative_beside_an_image(given, build):
    """By rules alone it is torch.func.jvp's; the image moves F, which has the data's channels."""
    network, (x_t, t, dx_dt, image) = wake(build(image_channels=3)).double().eval(), given
    assert network.condition_names == ("image",)
    f = Bound(network, named={"image": image})
    expected = TangentComputer("func")(f, x_t, t, dx_dt, sigma_data=0.7)
    for method in ("dual", "dual_checkpoint"):
        fallback_calls.clear()
        F, J = TangentComputer(method)(f, x_t, t, dx_dt, sigma_data=0.7)
        assert not fallback_calls
        torch.testing.assert_close((F, J), expected, rtol=1e-10, atol=1e-10)
    assert F.shape == x_t.shape
    moved = network(x_t / 0.7, t, image=image.flip(1))
    assert (moved - F).abs().flatten(1).amax(1).min() > 1e-3


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_an_image_without_effect_leaves_the_network_as_it_was(given, build):
    """Zeros, and weights of zero for them: the columns of the input layer that are the image's."""
    (u, t, _, image), network, plain = given, build(image_channels=3).double(), build().double()
    wake(network)
    weights = network.state_dict()
    shape = plain.input.weight.shape
    weights["input.weight"] = weights["input.weight"][:, : shape[1]]
    plain.load_state_dict(weights)
    zeros = torch.zeros_like(image)
    torch.testing.assert_close(network.eval()(u, t, image=zeros), plain.eval()(u, t))


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_images_that_do_not_fit_are_refused(given, build):
    u, t, _, image = given
    network = build(image_channels=3).double()
    with pytest.raises(ValueError, match=r"image_channels=3 takes an image of 3 .* got none"):
        network(u, t)
    with pytest.raises(ValueError, match=r"size of its samples, \(4, 6\), got one of .*\(3, 3, 4"):
        network(u, t, image=image[..., :5])
    with pytest.raises(ValueError, match=r"image_channels=0 takes .* got one of shape"):
        build().double()(u, t, image=image)


@pytest.mark.parametrize("build", {**BUILDERS, **EDM2}.values(), ids={**BUILDERS, **EDM2})
@pytest.mark.parametrize("condition", ["guidance", "end"])
def test_a_condition_of_a_student_is_silent_at_the_start_and_learned_at_once(
    given, build, condition
):
    """On a network that is awake, a layer of zeros has a gradient; two would have none."""
    options = {"guided": True} if condition == "guidance" else {"two_times": True}
    network, (u, t, _, _) = wake(build(**options)), given
    layer = getattr(network.conditioning, condition).linear
    fresh = getattr(build(**options).conditioning, condition).linear
    layer.load_state_dict(fresh.state_dict())
    network.double().train()
    scales = torch.tensor([1.0, 1.5, 2.0]).double()
    keyword = "guidance" if condition == "guidance" else "t_end"
    F = network(u, t, **{keyword: scales})
    assert torch.equal(network(u, t, **{keyword: 2 * scales}), F)
    F.square().sum().backward()
    assert float(layer.weight.grad.norm()) > 1e-6
