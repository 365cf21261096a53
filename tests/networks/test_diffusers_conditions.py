# SPDX-License-Identifier: Apache-2.0
"""Conditions of diffusers' models: each counts, none is the model's own, and training on them."""

import copy

import pytest
import torch
from diffusers_calls import MODELS, B, T, bound, drawn
from diffusers_models import dit, unet
from gaussian import PATH
from tiny import trainer, wake
from torch.utils.data import DataLoader

from scm_lightning import ConsistencyModule
from scm_lightning.core import Conditions, Guided
from scm_lightning.data import Batch
from scm_lightning.networks import DiffusersNetwork
from scm_lightning.networks.condition_names import condition_names
from scm_lightning.objectives import PairVelocity

WITH_TEXT = [name for name, model in MODELS.items() if "text" in model.conditions]

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers gives many


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


FIRST = ("UNet2DConditionModel, XL", "DiT", "Sana", "Flux", "QwenImage", "Wan")
TRAINED = [
    pytest.param(name, marks=[] if name.startswith(FIRST) else [pytest.mark.slow])
    for name in MODELS
    if name == FIRST[0] or "," not in name
]


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


def test_what_a_model_does_not_take_is_refused_by_name(randn):
    model, u, given = drawn("SD3Transformer2DModel")
    network = DiffusersNetwork(model)
    assert network.condition_names == ("text", "pooled", "text_mask")
    assert network.optional_conditions == ("text_mask",)
    assert condition_names(network).needed == ("text", "pooled")
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
