# SPDX-License-Identifier: Apache-2.0
"""U-Nets of diffusers, one small function each."""

import diffusers
import torch
from foreign_adapter import B, Foreign, Network, text

import scm_lightning.torchvision_guard  # noqa: F401  half of diffusers imports torchvision


def unet_2d():
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        dropout=0.1,
    )
    return Foreign(model, lambda net, u, time: net.model(u, time).sample, 1000)


def unet_2d_condition():
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=12,
        dropout=0.1,
    )
    return Foreign(
        model, lambda net, u, time: net.model(u, time, net.text).sample, 1000, text=text(5, 12)
    )


def kandinsky3():
    model = diffusers.Kandinsky3UNet(
        in_channels=2,
        time_embedding_dim=16,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=(16, 16, 32, 32),  # it has four levels, always
        cross_attention_dim=12,
        encoder_hid_dim=10,
    )
    mask = torch.ones(B, 5)
    return Foreign(
        model,
        lambda net, u, time: net.model(u, time, net.text, net.mask).sample,
        1000,
        text=text(5, 10),
        mask=mask,
    )


def stable_cascade():
    model = diffusers.StableCascadeUNet(
        in_channels=2,
        out_channels=2,
        timestep_ratio_embedding_dim=8,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_text_pooled_in_channels=10,
        clip_seq=2,
    )
    return Foreign(
        model, lambda net, u, time: net.model(u, time, net.pooled).sample, pooled=text(1, 10)
    )


def unet_1d():
    model = diffusers.UNet1DModel(
        sample_size=16,
        in_channels=2,
        out_channels=2,
        extra_in_channels=64,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1DNoSkip"),
    )
    return Foreign(model, lambda net, u, time: net.model(u, time).sample)


def unet_3d():
    model = diffusers.UNet3DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=8,
        cross_attention_dim=12,
    )
    return Foreign(
        model, lambda net, u, time: net.model(u, time, net.text).sample, 1000, text=text(5, 12)
    )


def unet_spatio_temporal():
    model = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12,
        cross_attention_dim=12,
        num_attention_heads=(2, 4),
        num_frames=2,
    )

    def call(net, u, time):
        return net.model(u, time, net.text, net.added).sample

    return Foreign(model, call, 1000, text=text(1, 12), added=text(3))


UNETS = {
    "UNet2DModel": Network(unet_2d, (2, 8, 8), modes=("float64", "float32", "bf16")),
    "UNet2DConditionModel": Network(unet_2d_condition, (2, 8, 8)),
    "Kandinsky3UNet": Network(kandinsky3, (2, 8, 8)),
    "StableCascadeUNet": Network(stable_cascade, (2, 8, 8)),
    "UNet1DModel": Network(unet_1d, (2, 16)),
    "UNet3DConditionModel": Network(unet_3d, (2, 2, 8, 8)),
    "UNetSpatioTemporalConditionModel": Network(unet_spatio_temporal, (2, 2, 8, 8)),
}
