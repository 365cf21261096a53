# SPDX-License-Identifier: Apache-2.0
"""Small models of diffusers."""

import diffusers

import scm_lightning.torchvision_guard  # noqa: F401  half of diffusers imports torchvision

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
CHANNELS = {"in_channels": 2, "out_channels": 2}


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
