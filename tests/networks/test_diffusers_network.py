# SPDX-License-Identifier: Apache-2.0
"""diffusers models by their maps: the pipeline's own call, its derivative, its conditions."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo import pipeline_cogvideox
from diffusers.pipelines.hunyuandit import pipeline_hunyuandit
from diffusers_calls import MODELS, B, T, bound, drawn
from diffusers_models import dit, stable_diffusion, unet
from tiny import wake
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scm_lightning.autodiff import TangentComputer
from scm_lightning.core import NULL_LABEL, Bound
from scm_lightning.networks import DiffusersNetwork, ModelMap
from scm_lightning.networks.diffusers_layouts import cogvideo_rotations, hunyuan_rotations

SIGMA_DATA = 0.7
INSIDE = {"FluxTransformer2DModel", "AuraFlowTransformer2DModel", "QwenImageTransformer2DModel"}
"""Models that multiply their time by 1000."""
UNKNOWN_TIME = {"HunyuanDiT2DModel", "CogVideoXTransformer3DModel"}

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers gives many


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_it_is_the_call_of_the_pipeline(name):
    """Called as it is written out, before the model is wrapped and after; t is what it embeds."""
    model, u, given = drawn(name)
    time = T / 1000 if name.partition(",")[0] in INSIDE else T
    expected = MODELS[name].call(model, u, time, given)
    keys = list(model.state_dict())
    network = DiffusersNetwork(model)
    torch.testing.assert_close(network(u, T, **given), expected, rtol=0, atol=0)
    torch.testing.assert_close(MODELS[name].call(model, u, time, given), expected, rtol=0, atol=0)
    assert list(network.state_dict()) == [f"model.{key}" for key in keys]
    assert 0.05 < float(expected.std()) < 5


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 20), (12, 36)])
def test_positions_are_those_of_diffusers(height, width):
    """Of two and of three axes, cropped from the grid that the model learned them in."""
    u, size = torch.zeros(1, 2, 5, height, width), (height // 2, width // 2)
    hunyuan = SimpleNamespace(patch_size=2, attention_head_dim=24)
    region = pipeline_hunyuandit.get_resize_crop_region_for_grid(size, 32)
    expected = get_2d_rotary_pos_embed(24, region, size, device="cpu", output_type="pt")
    torch.testing.assert_close(hunyuan_rotations(hunyuan, u[:, :, 0]), expected, rtol=0, atol=0)
    video = {"patch_size": 2, "attention_head_dim": 16, "sample_height": 24, "sample_width": 30}
    region = pipeline_cogvideox.get_resize_crop_region_for_grid(size, 15, 12)
    expected = get_3d_rotary_pos_embed(16, region, size, 5)
    found = cogvideo_rotations(SimpleNamespace(**video, patch_size_t=None), u)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    options = {"grid_type": "slice", "max_size": (30, 30)}
    expected = get_3d_rotary_pos_embed(16, None, size, 3, **options)
    found = cogvideo_rotations(SimpleNamespace(**video, patch_size_t=2), u)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


TIMES = [(name, time) for name in MODELS for time in ("radians", "source")]


@pytest.mark.parametrize(
    ("name", "time"),
    [each for each in TIMES if each != (each[0], "source") or each[0] not in UNKNOWN_TIME],
)
def test_derivative_is_that_of_torch(name, time, randn):
    """diffusers embeds the time in float32, whose rounding the two methods make at two places."""
    model, u, given = drawn(name)
    at = (bound(DiffusersNetwork(model, time=time), given), u, T, randn(*u.shape))
    F, J = TangentComputer("dual", check=False)(*at, sigma_data=SIGMA_DATA)
    with sdpa_kernel(SDPBackend.MATH):
        F_func, J_func = TangentComputer("func", check=False)(*at, sigma_data=SIGMA_DATA)
    torch.testing.assert_close(F, F_func, rtol=0, atol=1e-13)
    torch.testing.assert_close(J, J_func, rtol=0, atol=1e-6 * float(J_func.abs().max()))
    assert float(J.abs().max()) > 1e-2
    parameters = [*model.parameters()]
    gradients = torch.autograd.grad(F.square().sum(), parameters, allow_unused=True)
    F_plain = at[0](u / SIGMA_DATA, T)
    expected = torch.autograd.grad(F_plain.square().sum(), parameters, allow_unused=True)
    for one, other in zip(gradients, expected, strict=True):
        assert (one is None) == (other is None)  # what QwenImage makes of its text last is not used
        if one is not None:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("build", [unet, dit])
def test_derivative_matches_differences(build, randn):
    network = wake(DiffusersNetwork(build()), std=0.15).double().eval()
    x_t, dx_dt = randn(5, 2, 8, 8), randn(5, 2, 8, 8)
    t, labels = torch.linspace(0.2, 1.5, 5).double(), torch.tensor([0, 1, NULL_LABEL, 0, 1])
    method = TangentComputer("dual", check=False)
    _, J = method(Bound(network, labels), x_t, t, dx_dt, sigma_data=SIGMA_DATA)

    def difference(h):
        after = network((x_t + h * dx_dt) / SIGMA_DATA, t + h, labels)
        before = network((x_t - h * dx_dt) / SIGMA_DATA, t - h, labels)
        return (t.cos() * t.sin())[:, None, None, None] * (after - before) / (2 * h)

    with torch.no_grad():
        # diffusers embeds the time in float32, in whose rounding a small step is lost: eps / h is
        # 1.5e-5. Of two large ones the error of second order cancels. Measured: 4e-7.
        expected = (4 * difference(2**-7) - difference(2**-6)) / 3
        torch.testing.assert_close(J, expected, rtol=0, atol=1.5e-5)


def test_stock_forward_mode_fails_on_the_unet_and_ours_does_not(randn):
    """What dual numbers, and the repairs of forward mode, are for: torch 2.13 refuses it."""
    network = wake(DiffusersNetwork(unet()), std=0.15).double().eval()
    x_t, t = randn(5, 2, 8, 8), torch.linspace(0.2, 1.5, 5).double()
    labels = torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.func.jvp(lambda u, t: network(u, t, labels), (x_t, t), (x_t, t))


def test_the_guidance_of_flux_is_not_its_time():
    """One module projects both: 1000 times the time, then 1000 times the scale."""
    model, u, given = drawn("FluxTransformer2DModel")
    network, seen = DiffusersNetwork(model), []
    (holder,) = network.given
    holder.project.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(u, T, **given)
    torch.testing.assert_close(seen, [T, 1000 * given["guidance"]])
    seen.clear()
    DiffusersNetwork(model, network.map, "source")(u, T, **given)
    ratio = T.tan()
    torch.testing.assert_close(seen, [1000 * ratio / (1 + ratio), 1000 * given["guidance"]])


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.guided])
@torch.no_grad()
def test_a_scale_that_is_not_given_is_one(name):
    model, u, given = drawn(name)
    network = DiffusersNetwork(model)
    given.pop("guidance")
    one = network(u, T, guidance=torch.ones(B).double(), **given)
    torch.testing.assert_close(network(u, T, **given), one, rtol=0, atol=0)


@torch.no_grad()
def test_a_model_that_divides_by_its_time_gets_it(randn):
    model = wake(unet(time_embedding_type="fourier", num_class_embeds=None), std=0.15).double()
    u = randn(B, 2, 8, 8)
    expected = model(u, T)[0]
    torch.testing.assert_close(DiffusersNetwork(model)(u, T), expected, rtol=0, atol=0)


@torch.no_grad()
def test_a_copy_has_a_time_of_its_own(randn):
    """As the average of the weights is one."""
    network = wake(DiffusersNetwork(unet()), std=0.15).double().eval()
    u, other = randn(B, 2, 8, 8), copy.deepcopy(network)
    F = network(u, T)
    wake(other, seed=1, std=0.15)
    other(u, T.flip(0))
    torch.testing.assert_close(network(u, T), F, rtol=0, atol=0)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(u, T), F, rtol=0, atol=0)


class Theirs(nn.Module):
    """A model of nobody's, in the manner of diffusers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(4, 2).double()

    def forward(self, picture, sigma, extra=None, return_dict=True):
        whole = self.weight(picture + extra["pose"]) * sigma[:, None]
        return (whole,)


def test_a_model_of_ones_own_needs_a_map(randn):
    model, u, pose = Theirs(), randn(B, 2, 8, 4), randn(B, 2, 8, 4)
    with pytest.raises(ValueError, match=r"Theirs is not among the models of .* write an adapter"):
        DiffusersNetwork(model)
    given = ModelMap("picture", "sigma", torch.tan, conditions={"pose": "extra.pose"})
    network = DiffusersNetwork(model, given)
    assert network.condition_names == ("pose",)
    with pytest.raises(ValueError, match=r"F must have the shape of u, .* from Theirs; build"):
        network(u, T[:, None, None], pose=pose)
    u, pose = torch.zeros(B, 4).double(), torch.ones(B, 4).double()
    model.weight = nn.Linear(4, 4).double()
    torch.testing.assert_close(network(u, T, pose=pose), model(u, T.tan(), {"pose": pose})[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unet(class_embed_type="timestep", num_class_embeds=None), "type: timestep; set n"),
        (
            lambda: stable_diffusion(
                addition_embed_type="image", encoder_hid_dim=12, encoder_hid_dim_type="image_proj"
            ),
            "Stable Diffusion 1, 2 or XL, got addition_embed_type: image, .*image_proj; write",
        ),
        (lambda: nn.Linear(3, 3), "Linear is not among the models of diffusers whose call"),
    ],
)
def test_other_models_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        DiffusersNetwork(make())


def test_a_time_that_is_not_known_is_refused():
    for name in UNKNOWN_TIME:
        with pytest.raises(ValueError, match=f"the time that {name} was trained on is not known"):
            DiffusersNetwork(MODELS[name].build(), time="source")
