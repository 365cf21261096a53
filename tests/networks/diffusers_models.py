# SPDX-License-Identifier: Apache-2.0
"""Small models of diffusers, each with the call that its own pipeline makes.

What is constant in the call comes from the pipelines themselves where they have a function for it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo import pipeline_cogvideox
from diffusers.pipelines.hunyuandit import pipeline_hunyuandit
from torch import Tensor, nn

import scm_lightning.torchvision_guard  # noqa: F401  half of diffusers imports torchvision

B = 3
"""Batch size, unlike any other axis."""
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
CHANNELS = {"in_channels": 2, "out_channels": 2}
LENGTHS = (5, 2, 3)
"""Tokens that the texts of the batch have."""


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


def unet(**options):
    options = {"num_class_embeds": 3} | options
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        **CHANNELS,
        **options,
    )


def stable_diffusion(**options):
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=12,
        **CHANNELS,
        **options,
    )


def xl():
    return stable_diffusion(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=10 + 6 * 4,
    )


def dit():
    return diffusers.DiTTransformer2DModel(
        in_channels=2,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
        norm_num_groups=8,
        **HEADS,
    )


def pixart(sized=True):
    # In a multiple of 3: what it makes of sizes has a third of its width.
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=2,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_size=8,
        caption_channels=12,
        norm_num_groups=8,
        use_additional_conditions=sized,
    )


def sana(guidance_embeds=False):
    return diffusers.SanaTransformer2DModel(
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=8,
        guidance_embeds=guidance_embeds,
        qk_norm="rms_norm_across_heads" if guidance_embeds else None,
        **HEADS,
        **CHANNELS,
    )


def sd3():
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        num_layers=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        **HEADS,
        **CHANNELS,
    )


def flux(guidance_embeds=True):
    return diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=8,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=guidance_embeds,
        **HEADS,
    )


def aura_flow():
    return diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pos_embed_max_size=16,
        **HEADS,
        **CHANNELS,
    )


def lumina2():
    return diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(16, 16, 16),
        cap_feat_dim=12,
        **CHANNELS,
    )


def hunyuan_dit():
    return diffusers.HunyuanDiT2DModel(
        in_channels=2,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=4,
        mlp_ratio=2.0,
        learn_sigma=True,
        cross_attention_dim=12,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        text_len=5,
        text_len_t5=7,
        **HEADS,
    )


def qwen_image():
    return diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=8,
        out_channels=2,
        num_layers=1,
        joint_attention_dim=12,
        axes_dims_rope=(2, 2, 4),
        **HEADS,
    )


def wan():
    return diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=16,
        **CHANNELS,
    )


def cogvideox():
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        time_embed_dim=16,
        text_embed_dim=12,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=5,
        use_rotary_positional_embeddings=True,
        **CHANNELS,
    )


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
