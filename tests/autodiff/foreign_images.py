# SPDX-License-Identifier: Apache-2.0
"""Transformers of diffusers that take images, one small function each."""

import diffusers
import torch
from foreign_adapter import B, Foreign, Network, text

import scm_lightning.torchvision_guard  # noqa: F401  half of diffusers imports torchvision


def dit():
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=2,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=3,
        norm_num_groups=8,
        dropout=0.1,
    )
    labels = torch.arange(B) % 3
    return Foreign(
        model, lambda net, u, time: net.model(u, time, net.labels).sample, 1000, labels=labels
    )


def transformer_2d():
    model = diffusers.Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=8,
        num_layers=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        dropout=0.1,
    )
    # It knows no time in this form: the adapter adds it to the text.
    return Foreign(
        model,
        lambda net, u, time: net.model(u, net.text * time.cos()[:, None, None]).sample,
        text=text(5, 12),
    )


def sana():
    model = diffusers.SanaTransformer2DModel(
        in_channels=2,
        out_channels=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=8,
        dropout=0.1,
    )
    return Foreign(
        model, lambda net, u, time: net.model(u, net.text, time).sample, 1000, text=text(5, 12)
    )


def pixart():
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=2,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=12,
        norm_num_groups=8,
        dropout=0.1,
        use_additional_conditions=False,
    )

    def call(net, u, time):
        return net.model(u, net.text, time, added_cond_kwargs={}).sample

    return Foreign(model, call, 1000, text=text(5, 12))


def sd3():
    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=2,
        out_channels=2,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )

    def call(net, u, time):
        return net.model(u, net.text, net.pooled, time).sample

    return Foreign(model, call, 1000, text=text(5, 12), pooled=text(10))


def sd3_checkpointed():
    network = sd3()
    network.model.enable_gradient_checkpointing()
    return network


def aura_flow():
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=2,
        out_channels=2,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    )
    return Foreign(
        model, lambda net, u, time: net.model(u, net.text, time).sample, text=text(5, 12)
    )


def lumina2():
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=2,
        out_channels=2,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(16, 16, 16),
        cap_feat_dim=12,
    )
    mask = torch.ones(B, 5, dtype=torch.bool)
    return Foreign(
        model,
        lambda net, u, time: net.model(u, time, net.text, net.mask).sample,
        text=text(5, 12),
        mask=mask,
    )


def hunyuan_dit():
    model = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=4,
        mlp_ratio=2.0,
        learn_sigma=False,
        cross_attention_dim=12,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        text_len=5,
        text_len_t5=7,
        use_style_cond_and_image_meta_size=False,
    )

    def call(net, u, time):
        return net.model(
            u,
            time,
            encoder_hidden_states=net.text,
            text_embedding_mask=net.mask,
            encoder_hidden_states_t5=net.text_t5,
            text_embedding_mask_t5=net.mask_t5,
            image_rotary_emb=(net.cos, net.sin),
        ).sample

    angle = torch.rand(16, 8)
    given = {"text": text(5, 12), "text_t5": text(7, 16), "cos": angle.cos(), "sin": angle.sin()}
    masks = {
        "mask": torch.ones(B, 5, dtype=torch.bool),
        "mask_t5": torch.ones(B, 7, dtype=torch.bool),
    }
    return Foreign(model, call, 1000, **given, **masks)


def cogview3():
    model = diffusers.CogView3PlusTransformer2DModel(
        patch_size=2,
        in_channels=2,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=2,
        text_embed_dim=12,
        time_embed_dim=16,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )

    def call(net, u, time):
        return net.model(u, net.text, time, net.size, net.size, net.size).sample

    return Foreign(model, call, 1000, text=text(5, 12), size=torch.full((B, 2), 8.0))


def cogview4():
    model = diffusers.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=2,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=2,
        text_embed_dim=12,
        time_embed_dim=16,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )

    def call(net, u, time):
        return net.model(u, net.text, time, net.size, net.size, net.size).sample

    return Foreign(model, call, 1000, text=text(5, 12), size=torch.full((B, 2), 8.0))


IMAGES = {
    "DiTTransformer2DModel": Network(dit, (2, 8, 8)),
    "Transformer2DModel": Network(transformer_2d, (8, 6, 6)),
    "SanaTransformer2DModel": Network(sana, (2, 8, 8), modes=("float64", "float32", "bf16")),
    "PixArtTransformer2DModel": Network(pixart, (2, 8, 8)),
    "SD3Transformer2DModel": Network(sd3, (2, 8, 8), modes=("float64", "float32", "bf16")),
    "SD3Transformer2DModel, gradient checkpointing": Network(sd3_checkpointed, (2, 8, 8)),
    "AuraFlowTransformer2DModel": Network(aura_flow, (2, 8, 8)),
    "Lumina2Transformer2DModel": Network(lumina2, (2, 8, 8)),
    "HunyuanDiT2DModel": Network(hunyuan_dit, (2, 8, 8)),
    "CogView3PlusTransformer2DModel": Network(cogview3, (2, 8, 8)),
    "CogView4Transformer2DModel": Network(cogview4, (2, 8, 8)),
}
