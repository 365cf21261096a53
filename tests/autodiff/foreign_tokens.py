# SPDX-License-Identifier: Apache-2.0
"""Transformers of diffusers for packed tokens, with rotary positions, and for videos."""

import diffusers
import torch
from foreign_adapter import B, Foreign, Network, text

import scm_lightning.torchvision_guard  # noqa: F401  half of diffusers imports torchvision


def flux_like(cls, **options):
    """A model of Flux's kind: packed tokens, positions as coordinates, complex or real RoPE."""
    return cls(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(2, 2, 4),
        **options,
    )


def positions():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    image = torch.stack([torch.zeros(4, 4), rows, columns], -1).reshape(16, 3)
    return {"img_ids": image, "txt_ids": torch.zeros(5, 3)}


def flux():
    def call(net, u, time):
        return net.model(
            u, net.text, net.pooled, time, net.img_ids, net.txt_ids, guidance=net.guidance
        ).sample

    model = flux_like(
        diffusers.FluxTransformer2DModel, pooled_projection_dim=10, guidance_embeds=True
    )
    given = {"text": text(5, 12), "pooled": text(10), "guidance": torch.full((B,), 3.5)}
    return Foreign(model, call, **given, **positions())


def chroma():
    def call(net, u, time):
        return net.model(u, net.text, time, net.img_ids, net.txt_ids, net.mask).sample

    model = flux_like(
        diffusers.ChromaTransformer2DModel,
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    mask = torch.ones(B, 5 + 16)
    return Foreign(model, call, text=text(5, 12), mask=mask, **positions())


def qwen_image():
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=8,
        out_channels=2,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(2, 2, 4),
    )

    def call(net, u, time):
        shapes = [[(1, 4, 4)]] * u.shape[0]
        return net.model(u, net.text, net.mask, time, shapes).sample

    return Foreign(model, call, text=text(5, 12), mask=torch.ones(B, 5, dtype=torch.bool))


def prx():
    model = diffusers.PRXTransformer2DModel(
        in_channels=2,
        patch_size=2,
        context_in_dim=12,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[4, 4],
    )
    return Foreign(
        model, lambda net, u, time: net.model(u, time, net.text).sample, text=text(5, 12)
    )


def z_image():
    model = diffusers.ZImageTransformer2DModel(
        in_channels=2,
        dim=24,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=12,
        axes_dims=[4, 4, 4],
        axes_lens=[64, 16, 16],
    )

    def call(net, u, time):
        pictures = [each[:, None] for each in u]
        out = net.model(pictures, time, list(net.text), return_dict=False)[0]
        return torch.stack(out)[:, :, 0]

    return Foreign(model, call, text=text(32, 12))


def omnigen():
    model = diffusers.OmniGenTransformer2DModel(
        in_channels=2,
        patch_size=2,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        num_layers=1,
        pad_token_id=0,
        vocab_size=20,
        max_position_embeddings=64,
        original_max_position_embeddings=64,
        rope_scaling={"short_factor": [1.0] * 4, "long_factor": [1.0] * 4, "type": "su"},
        pos_embed_max_size=8,
        time_step_dim=16,
    )
    length = 5 + 1 + 16

    def call(net, u, time):
        return net.model(u, time, net.ids, [], {}, net.mask, net.positions).sample

    return Foreign(
        model,
        call,
        ids=torch.arange(B * 5).reshape(B, 5),
        mask=torch.ones(B, length, length),
        positions=torch.arange(length).expand(B, length),
    )


def wan():
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=2,
        out_channels=2,
        text_dim=10,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=16,
    )
    return Foreign(
        model, lambda net, u, time: net.model(u, time, net.text).sample, 1000, text=text(5, 10)
    )


def cogvideox():
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=2,
        out_channels=2,
        time_embed_dim=16,
        text_embed_dim=12,
        num_layers=1,
        dropout=0.1,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=5,
        use_rotary_positional_embeddings=True,
    )
    angle = torch.rand(3 * 16, 8)

    def call(net, u, time):
        return net.model(u, net.text, time, image_rotary_emb=(net.cos, net.sin)).sample

    return Foreign(model, call, 1000, text=text(5, 12), cos=angle.cos(), sin=angle.sin())


def ltx_video():
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        cross_attention_dim=24,
        num_layers=1,
        caption_channels=10,
    )

    def call(net, u, time):
        return net.model(u, net.text, time, net.mask, num_frames=2, height=2, width=4).sample

    return Foreign(model, call, 1000, text=text(5, 10), mask=torch.ones(B, 5))


def mochi():
    model = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=2,
        out_channels=2,
        text_embed_dim=16,
        time_embed_dim=16,
        max_sequence_length=5,
    )

    def call(net, u, time):
        return net.model(u, net.text, time, net.mask).sample

    return Foreign(model, call, 1000, text=text(5, 16), mask=torch.ones(B, 5, dtype=torch.bool))


TOKENS = {
    "FluxTransformer2DModel": Network(flux, (16, 4)),
    "ChromaTransformer2DModel": Network(chroma, (16, 4)),
    "QwenImageTransformer2DModel": Network(qwen_image, (16, 8)),
    "PRXTransformer2DModel": Network(prx, (2, 8, 8)),
    "ZImageTransformer2DModel": Network(z_image, (2, 8, 8)),
    "OmniGenTransformer2DModel": Network(omnigen, (2, 8, 8)),
    "WanTransformer3DModel": Network(wan, (2, 2, 8, 8)),
    "CogVideoXTransformer3DModel": Network(cogvideox, (3, 2, 8, 8)),
    "LTXVideoTransformer3DModel": Network(ltx_video, (16, 4)),
    "MochiTransformer3DModel": Network(mochi, (2, 2, 8, 8)),
}
