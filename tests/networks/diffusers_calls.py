# SPDX-License-Identifier: Apache-2.0
"""Calls that diffusers' own pipelines make of the small models, written out.

What is constant in a call comes from the pipelines themselves where they have a function for it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo import pipeline_cogvideox
from diffusers.pipelines.hunyuandit import pipeline_hunyuandit
from diffusers_models import (
    aura_flow,
    cogvideox,
    dit,
    flux,
    hunyuan_dit,
    lumina2,
    pixart,
    qwen_image,
    sana,
    sd3,
    stable_diffusion,
    unet,
    wan,
    xl,
)
from tiny import wake
from torch import Tensor, nn

from scm_lightning.core import Bound

B = 3
"""Batch size, unlike any other axis."""
LENGTHS = (5, 2, 3)
"""Tokens that the texts of the batch have."""
T = torch.tensor([0.2, 0.8, 1.4], dtype=torch.float64)


class Model(NamedTuple):
    """A model, its conditions and the call of its pipeline.

    Attributes:
        build: a function without arguments to the model.
        call: (model, u, time, conditions) to its output, written out.
        conditions: shapes of the floating conditions of one sample, by our names.
        masks: names of the texts that have a mask.
        shape: of a sample.
        labels: whether it has three classes.
        guided: whether it takes a guidance scale.
    """

    build: Callable[[], nn.Module]
    call: Callable[[Any, Tensor, Tensor, dict[str, Tensor]], Tensor]
    conditions: dict[str, tuple[int, ...]] = {}  # noqa: RUF012
    masks: tuple[str, ...] = ()
    shape: tuple[int, ...] = (2, 8, 8)
    labels: bool = False
    guided: bool = False

    def given(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Random conditions in float64, zero where a mask says that there is no token."""
        found = {}
        for name, shape in self.conditions.items():
            found[name] = torch.randn(B, *shape, generator=generator, dtype=torch.float64)
        for name in self.masks:
            there = torch.arange(found[name].shape[1]) < torch.tensor(LENGTHS)[:, None]
            found[f"{name}_mask"] = there
            found[name] *= there[..., None]
        return found


def call_xl(model, u, time, given):
    sizes = torch.tensor([64.0, 64, 0, 0, 64, 64]).repeat(B, 1)
    added = {"text_embeds": given["pooled"], "time_ids": sizes}
    mask = given["text_mask"]
    return model(u, time, given["text"], added_cond_kwargs=added, encoder_attention_mask=mask)[0]


def call_pixart(model, u, time, given):
    sizes = {"resolution": torch.full((B, 2), 64.0), "aspect_ratio": torch.ones(B, 1)}
    return model(
        u,
        given["text"],
        time,
        added_cond_kwargs=sizes,
        encoder_attention_mask=given["text_mask"],
    )[0][:, :2]


def call_sana(model, u, time, given):
    mask = given["text_mask"]
    scale = given.get("guidance")
    scale = scale if scale is None else 0.1 * scale
    return model(u, given["text"], time, guidance=scale, encoder_attention_mask=mask)[0]


def call_flux(model, u, time, given):
    pipeline = diffusers.FluxPipeline
    packed = pipeline._pack_latents(u, B, 2, 8, 8)
    places = pipeline._prepare_latent_image_ids(B, 4, 4, "cpu", torch.float32)
    words = torch.zeros(5, 3)
    out = model(packed, given["text"], given["pooled"], time, places, words, given.get("guidance"))[
        0
    ]
    return pipeline._unpack_latents(out, 64, 64, 8)


def call_hunyuan(model, u, time, given):
    region = pipeline_hunyuandit.get_resize_crop_region_for_grid((4, 4), 32)
    turns = get_2d_rotary_pos_embed(8, region, (4, 4), device="cpu", output_type="pt")
    return model(
        u,
        time,
        encoder_hidden_states=given["text"],
        text_embedding_mask=given["text_mask"],
        encoder_hidden_states_t5=given["text_t5"],
        text_embedding_mask_t5=given["text_t5_mask"],
        image_meta_size=torch.tensor([[64.0, 64, 64, 64, 0, 0]] * B),
        style=torch.zeros(B, dtype=torch.int64),
        image_rotary_emb=turns,
    )[0][:, :2]


def call_qwen(model, u, time, given):
    pipeline = diffusers.QwenImagePipeline
    packed = pipeline._pack_latents(u, B, 2, 8, 8)
    out = model(packed, given["text"], given["text_mask"], time, [[(1, 4, 4)]] * B)[0]
    return pipeline._unpack_latents(out, 64, 64, 8)[:, :, 0]


def call_cogvideox(model, u, time, given):
    region = pipeline_cogvideox.get_resize_crop_region_for_grid((4, 4), 4, 4)
    turns = get_3d_rotary_pos_embed(16, region, (4, 4), 3, device="cpu")
    frames_first = u.permute(0, 2, 1, 3, 4)
    out = model(frames_first, given["text"], time, image_rotary_emb=turns)[0]
    return out.permute(0, 2, 1, 3, 4)


TEXT = {"text": (5, 12)}
MASKED = {"conditions": TEXT, "masks": ("text",)}
POOLED = {"conditions": TEXT | {"pooled": (10,)}}
MODELS = {
    "UNet2DModel": Model(unet, lambda m, u, t, given: m(u, t, given["labels"])[0], labels=True),
    "UNet2DConditionModel": Model(
        stable_diffusion, lambda m, u, t, given: m(u, t, given["text"])[0], TEXT
    ),
    "UNet2DConditionModel, XL": Model(xl, call_xl, **POOLED, masks=("text",)),
    "DiTTransformer2DModel": Model(
        dit, lambda m, u, t, given: m(u, t, given["labels"])[0][:, :2], labels=True
    ),
    "PixArtTransformer2DModel": Model(pixart, call_pixart, **MASKED),
    "SanaTransformer2DModel": Model(sana, call_sana, **MASKED),
    "SanaTransformer2DModel, Sprint": Model(
        lambda: sana(guidance_embeds=True), call_sana, **MASKED, guided=True
    ),
    "SD3Transformer2DModel": Model(
        sd3, lambda m, u, t, given: m(u, given["text"], given["pooled"], t)[0], **POOLED
    ),
    "FluxTransformer2DModel": Model(flux, call_flux, **POOLED, guided=True),
    "FluxTransformer2DModel, schnell": Model(
        lambda: flux(guidance_embeds=False), call_flux, **POOLED
    ),
    "AuraFlowTransformer2DModel": Model(
        aura_flow, lambda m, u, t, given: m(u, given["text"], t)[0], **MASKED
    ),
    "Lumina2Transformer2DModel": Model(
        lumina2, lambda m, u, t, given: m(u, t, given["text"], given["text_mask"])[0], **MASKED
    ),
    "HunyuanDiT2DModel": Model(
        hunyuan_dit, call_hunyuan, TEXT | {"text_t5": (7, 16)}, ("text", "text_t5")
    ),
    "QwenImageTransformer2DModel": Model(qwen_image, call_qwen, **MASKED),
    "WanTransformer3DModel": Model(
        wan, lambda m, u, t, given: m(u, t, given["text"])[0], **MASKED, shape=(2, 3, 8, 8)
    ),
    "CogVideoXTransformer3DModel": Model(cogvideox, call_cogvideox, **MASKED, shape=(2, 3, 8, 8)),
}


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
