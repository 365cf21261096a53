# SPDX-License-Identifier: Apache-2.0
"""diffusers models by their maps: the pipeline's own call, its derivative, its conditions."""

import copy

import pytest
import torch
from diffusers_models import LENGTHS, MODELS, B, dit, flux, sana, stable_diffusion, unet
from gaussian import PATH
from tiny import trainer, wake
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from scm_lightning import ConsistencyModule
from scm_lightning.autodiff import TangentComputer
from scm_lightning.core import NULL_LABEL, Bound, Conditions, Guided
from scm_lightning.data import Batch
from scm_lightning.networks import DiffusersNetwork, ModelMap
from scm_lightning.objectives import PairVelocity

SIGMA_DATA = 0.7
T = torch.tensor([0.2, 0.8, 1.4], dtype=torch.float64)
INSIDE = {"FluxTransformer2DModel", "AuraFlowTransformer2DModel", "QwenImageTransformer2DModel"}
"""Models that multiply their time by 1000."""
UNKNOWN_TIME = {"HunyuanDiT2DModel", "CogVideoXTransformer3DModel"}
WITH_TEXT = [name for name, model in MODELS.items() if "text" in model.conditions]

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers gives many


def drawn(name):
    """A model, u and all that its network is called with by name."""
    kind, generator = MODELS[name], torch.Generator().manual_seed(0)
    model = wake(kind.build(), std=0.15).double().eval()
    u = torch.randn(B, *kind.shape, generator=generator, dtype=torch.float64)
    given = kind.given(generator)
    if kind.labels:
        given["labels"] = torch.tensor([0, 2, 1])
    if kind.guided:
        given["guidance"] = torch.tensor([1.0, 2.5, 4.0]).double()
    return model, u, given


def bound(network, given):
    named = {name: x for name, x in given.items() if name not in ("labels", "guidance")}
    return Bound(network, given.get("labels"), given.get("guidance"), None, named)


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


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_everything_that_it_takes_counts(name):
    """And every sample has its own. Words that a mask hides do not count.

    But for the pooled T5 of HunyuanDiT, which sees all of its words.
    """
    model, u, given = drawn(name)
    network = DiffusersNetwork(model)
    F = network(u, T, **given)
    for key, x in given.items():
        if not key.endswith("_mask"):
            other = {**given, key: x.roll(1, 0) + (1 if x.is_floating_point() else 0)}
            assert float((network(u, T, **other) - F).flatten(1).norm(dim=1).min()) > 1e-6, key
    for key in {*MODELS[name].masks} - {"text_t5"}:
        hidden = torch.where(given[f"{key}_mask"][..., None], given[key], 7.0)
        other = {**given, key: hidden}
        torch.testing.assert_close(network(u, T, **other), F, rtol=0, atol=1e-12)


TIMES = [(name, time) for name in MODELS for time in ("radians", "source")]


@pytest.mark.parametrize(
    ("name", "time"),
    [each for each in TIMES if each != (each[0], "source") or each[0] not in UNKNOWN_TIME],
)
def test_derivative_is_that_of_torch(name, time, randn):
    """diffusers embeds the time in float32, whose rounding the two methods make at two places."""
    model, u, given = drawn(name)
    at = (bound(DiffusersNetwork(model, time=time), given), u, T, randn(*u.shape))
    F, J = TangentComputer("dual")(*at, sigma_data=SIGMA_DATA)
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
    _, J = TangentComputer("dual")(Bound(network, labels), x_t, t, dx_dt, sigma_data=SIGMA_DATA)

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


@torch.no_grad()
def test_no_class_is_the_last_row_of_dit():
    """Its own null; in both branches of guidance, and where labels are None."""
    model, u, given = drawn("DiTTransformer2DModel")
    labels = given["labels"]
    nulls = torch.full((B,), 3)
    none, some = (model(u, T, each)[0][:, :2] for each in (nulls, labels))
    scale = torch.tensor([1.0, 2.0, 0.5]).double()
    network = DiffusersNetwork(model)
    F = Guided(network, Conditions(labels), scale)(u, T)
    torch.testing.assert_close(F, none + scale[:, None, None, None] * (some - none))
    torch.testing.assert_close(network(u, T), none)
    assert float((some - none).flatten(1).norm(dim=1).min()) > 1e-3


@torch.no_grad()
def test_no_class_adds_nothing_in_a_unet():
    """It has no row of its own: as a U-Net whose classes all are zero."""
    model, u, given = drawn("UNet2DModel")
    labels = given["labels"]
    empty = copy.deepcopy(model)
    empty.class_embedding.weight.zero_()
    none, some = empty(u, T, labels)[0], model(u, T, labels)[0]
    scale = torch.tensor([1.0, 2.0, 0.5]).double()
    network = DiffusersNetwork(model)
    F = Guided(network, Conditions(labels), scale)(u, T)
    torch.testing.assert_close(F, none + scale[:, None, None, None] * (some - none))
    torch.testing.assert_close(network(u, T), none)
    assert float((some - none).flatten(1).norm(dim=1).min()) > 1e-4


def test_a_dit_drops_no_class_of_its_own():
    """In train mode each of its blocks drops one in ten samples, each block others."""
    network = wake(DiffusersNetwork(dit()), std=0.15).train()
    u, labels = torch.randn(64, 2, 8, 8), torch.arange(64) % 3
    t = torch.full((64,), 0.5)
    expected = network.eval()(u, t, labels)
    torch.testing.assert_close(network.train()(u, t, labels), expected)


@pytest.mark.parametrize("name", WITH_TEXT)
@torch.no_grad()
def test_no_text_is_what_the_data_say(name):
    """A stored embedding of the empty text, or nothing that a mask shows; both are finite."""
    model, u, given = drawn(name)
    network = DiffusersNetwork(model)
    generator = torch.Generator().manual_seed(1)
    named = bound(network, given).named
    stored = {
        key: torch.randn(x.shape[1:], generator=generator).double()
        for key, x in named.items()
        if x.is_floating_point()
    }
    stored |= {key: torch.ones(x.shape[1:]).bool() for key, x in named.items() if key not in stored}
    empty = {key: x.expand(B, *x.shape) for key, x in stored.items()}
    inputs = {key: x for key, x in given.items() if key == "guidance"}
    none, some = (network(u, T, **inputs, **each) for each in (empty, named))

    def with_guidance(*args, **conditions):
        scales = {key: torch.cat([x, x]) for key, x in inputs.items()}
        return network(*args, scales.get("guidance"), **conditions)

    scale = torch.tensor([1.0, 2.0, 0.5]).double()
    F = Guided(with_guidance, Conditions(None, named, stored), scale)(u, T)
    shape = (-1, *[1] * (u.ndim - 1))
    torch.testing.assert_close(F, none + scale.reshape(shape) * (some - none))
    assert Guided(with_guidance, Conditions(None, named), scale)(u, T).isfinite().all()


class OneBatch(DataLoader):
    """The same batch for ever."""

    def __init__(self, batch):
        super().__init__([batch] * 2, batch_size=None)


TRAINED = [name for name in MODELS if "," not in name] + ["UNet2DConditionModel, XL"]


@pytest.mark.parametrize("name", TRAINED)
def test_it_is_trained_on_conditions(name):
    """Two steps from the paper's Algorithm 1, whose derivative is checked before the first."""
    kind, generator = MODELS[name], torch.Generator().manual_seed(0)
    network = DiffusersNetwork(wake(kind.build(), std=0.1))
    x0 = PATH.sigma_data * torch.randn(8, *kind.shape, generator=generator)
    given = {
        key: (x.float() if x.is_floating_point() else x).repeat(3, *[1] * (x.ndim - 1))[:8]
        for key, x in kind.given(generator).items()
    }
    labels = torch.arange(8) % 4 - 1 if kind.labels else None
    batch = Batch(x0, None if labels is None else labels.clamp(min=0), None, given)
    module = ConsistencyModule(network, PairVelocity(), path=PATH)
    before = {key: x.clone() for key, x in network.model.named_parameters()}
    run = trainer(2)
    run.fit(module, OneBatch(batch))
    assert run.global_step == 2
    moved = [key for key, x in module.student.model.named_parameters() if not x.equal(before[key])]
    assert len(moved) > 0.7 * len(before)


def test_the_guidance_of_flux_is_not_its_time():
    """One module projects both: 1000 times the time, then 1000 times the scale."""
    model, u, given = drawn("FluxTransformer2DModel")
    network, seen = DiffusersNetwork(model), []
    (holder,) = network.given
    holder.project.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(u, T, **given)
    torch.testing.assert_close(seen, [T, 1000 * given["guidance"]])
    seen.clear()
    DiffusersNetwork(flux(), time="source")
    ratio = T.tan()
    network.map.source_time(T)
    torch.testing.assert_close(network.map.source_time(T), ratio / (1 + ratio))


@pytest.mark.parametrize("build", [flux, lambda: sana(guidance_embeds=True)])
@torch.no_grad()
def test_a_scale_that_is_not_given_is_one(build):
    name = next(key for key, each in MODELS.items() if each.guided)
    name = name if build is flux else "SanaTransformer2DModel, Sprint"
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


def test_what_a_model_does_not_take_is_refused_by_name(randn):
    model, u, given = drawn("SD3Transformer2DModel")
    network = DiffusersNetwork(model)
    assert network.condition_names == ("text", "pooled", "text_mask")
    assert network.optional_conditions == ("text_mask",)
    with pytest.raises(ValueError, match="SD3Transformer2DModel needs the condition pooled, wh"):
        network(u, T, text=given["text"])
    with pytest.raises(ValueError, match=r"takes these conditions: text, pooled, .*; got image"):
        network(u, T, **given, image=u)
    with pytest.raises(ValueError, match="takes no guidance scale; train without one"):
        network(u, T, None, T, **given)
    with pytest.raises(ValueError, match="this SD3Transformer2DModel was built without classes"):
        network(u, T, torch.zeros(B, dtype=torch.int64), **given)
    plain = DiffusersNetwork(unet(num_class_embeds=None).double())
    with pytest.raises(ValueError, match="UNet2DModel was built without classes but got labels; s"):
        plain(u, T, torch.zeros(B, dtype=torch.int64))
    with pytest.raises(ValueError, match="takes these conditions: none; got text"):
        plain(u, T, text=given["text"])


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


def test_lengths_are_those_of_the_masks():
    """So that a mask of all True does not pass for one."""
    assert sorted({*LENGTHS}) == [2, 3, 5]
