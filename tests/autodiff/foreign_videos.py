# SPDX-License-Identifier: Apache-2.0
"""More transformers of diffusers, for videos, sound and with complex rotary positions."""

import diffusers
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from foreign_adapter import B, Foreign, Network, text
from foreign_tokens import positions

import scm_lightning.torchvision_guard  # noqa: F401  half of diffusers imports torchvision


def flux2():
    model = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
    )
    ids = {name: torch.nn.functional.pad(each, (0, 1)) for name, each in positions().items()}

    def call(net, u, time):
        return net.model(u, net.text, time, net.img_ids, net.txt_ids, guidance=net.guidance).sample

    return Foreign(model, call, text=text(5, 12), guidance=torch.full((B,), 3.5), **ids)


def hunyuan_video():
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=2,
        out_channels=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        guidance_embeds=False,
        text_embed_dim=12,
        pooled_projection_dim=10,
        rope_axes_dim=(2, 2, 4),
    )

    def call(net, u, time):
        return net.model(u, time, net.text, net.mask, net.pooled).sample

    mask = torch.arange(5) < torch.tensor([5, 4, 3])[:, None]
    return Foreign(model, call, 1000, text=text(5, 12), pooled=text(10), mask=mask)


def cosmos():
    """It refuses float64: its positions are normalized in float32."""
    model = diffusers.CosmosTransformer3DModel(
        in_channels=2,
        out_channels=2,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=12,
        adaln_lora_dim=4,
        max_size=(2, 8, 8),
    )
    padding = torch.zeros(1, 1, 8, 8)

    def call(net, u, time):
        return net.model(u, time, net.text, fps=16, padding_mask=net.padding).sample

    return Foreign(model, call, text=text(5, 12), padding=padding)


def sana_video():
    model = diffusers.SanaVideoTransformer3DModel(
        in_channels=2,
        out_channels=2,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=10,
        sample_size=8,
        dropout=0.1,
        rope_max_seq_len=16,
    )

    def call(net, u, time):
        return net.model(u, net.text, time).sample

    return Foreign(model, call, 1000, text=text(5, 10))


def latte():
    model = diffusers.LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=2,
        num_layers=1,
        dropout=0.1,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=8,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=12,
        video_length=2,
    )

    def call(net, u, time):
        return net.model(u, time, net.text).sample

    return Foreign(model, call, 1000, text=text(5, 12))


def lumina_next():
    model = diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=2,
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        learn_sigma=False,
        cross_attention_dim=12,
    )

    def call(net, u, time):
        return net.model(u, time, net.text, net.mask, net.turns, {}).sample

    turns = get_2d_rotary_pos_embed_lumina(8, 8, 8)
    mask = torch.ones(B, 5, dtype=torch.int32)
    return Foreign(model, call, text=text(5, 12), mask=mask, turns=turns)


def stable_audio():
    model = diffusers.StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        out_channels=4,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=10,
        cross_attention_input_dim=12,
    )
    angle = torch.rand(17, 4)
    turns = {"cos": angle.cos().repeat(1, 2), "sin": angle.sin().repeat(1, 2)}

    def call(net, u, time):
        return net.model(u, time, net.text, net.globals, (net.cos, net.sin)).sample

    return Foreign(model, call, text=text(5, 12), globals=text(1, 10), **turns)


VIDEOS = {
    "Flux2Transformer2DModel": Network(flux2, (16, 4)),
    "LuminaNextDiT2DModel": Network(lumina_next, (2, 8, 8)),
    "HunyuanVideoTransformer3DModel": Network(hunyuan_video, (2, 2, 8, 8)),
    "CosmosTransformer3DModel": Network(cosmos, (2, 2, 8, 8), modes=("float32",)),
    "SanaVideoTransformer3DModel": Network(sana_video, (2, 2, 8, 8)),
    "LatteTransformer3DModel": Network(latte, (2, 2, 8, 8)),
    "StableAudioDiTModel": Network(stable_audio, (4, 16)),
}
