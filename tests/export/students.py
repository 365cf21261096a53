# SPDX-License-Identifier: Apache-2.0
"""Students with random weights of every kind of network, as exports, without a run."""

import torch

from scm_lightning.core import Segments, linear_alphas_bar
from scm_lightning.data.index import Latents, ShardIndex, Split
from scm_lightning.export import SamplingFacts, StudentSampling
from scm_lightning.export.network_of import untrained_network
from scm_lightning.sampling import EqualJumps, FreshNoise
from scm_lightning.sampling.steps import SegmentJumps
from scm_lightning.storage import Export

SIGMA_DATA = 0.4
SHAPE = (2, 4, 8)
UNET2D = {
    "sample_size": [4, 8],
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": [8],
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "num_class_embeds": 3,
}
DIT2D = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 2,
    "out_channels": 4,
    "num_layers": 1,
    "norm_num_groups": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 3,
}


def of_diffusers(model, init_args, **further):
    spec = {"class_path": f"diffusers.{model}", "init_args": init_args}
    return "DiffusersNetwork", {"model": spec, **further}


def parametrized(process, **arguments):
    """A UNet2DModel that predicts what a process says, with F made of it."""
    kind, init_args = of_diffusers("UNet2DModel", UNET2D)
    spec = {"class_path": f"scm_lightning.networks.{kind}", "init_args": init_args}
    arguments = {"path": {"sigma_data": SIGMA_DATA}, **arguments}
    of_process = {"class_path": f"scm_lightning.core.{process}", "init_args": arguments}
    return "ParametrizedNetwork", {"network": spec, "process": of_process}


NETWORKS = {
    "mlp": ("MLP", {"model_channels": 8, "num_blocks": 1, "num_classes": 3, "guided": True}),
    "unet": (
        "UNet",
        {"model_channels": 8, "channel_mult": [1, 1], "num_blocks": 1, "num_classes": 3},
    ),
    "edm2": (
        "EDM2UNet",
        {
            "model_channels": 8,
            "channel_mult": [1, 1],
            "num_blocks": 1,
            "channels_per_head": 4,
            "num_classes": 3,
            "guided": True,
        },
    ),
    "dit": ("DiT", {"model_channels": 8, "num_blocks": 1, "num_heads": 2}),
    "unet2d": of_diffusers("UNet2DModel", UNET2D),
    "unet2d_fourier": of_diffusers(
        "UNet2DModel", {**UNET2D, "time_embedding_type": "fourier", "num_class_embeds": None}
    ),
    "dit2d_source_time": of_diffusers("DiTTransformer2DModel", DIT2D, time="source"),
    "unet2d_of_noise": parametrized(
        "DiscreteProcess", alphas_bar=linear_alphas_bar(num=100, beta_start=1e-3, beta_end=0.2)
    ),
    "unet2d_of_flow": parametrized("RectifiedFlowProcess"),
    "equal_jumps": ("MLP", {"model_channels": 8, "num_blocks": 1, "two_times": True}),
    "segments": ("MLP", {"model_channels": 8, "num_blocks": 1, "two_times": True}),
}
SHAPES = {"dit2d_source_time": (2, 8, 8)}  # it takes squares alone
STEPS = {"equal_jumps": EqualJumps(), "segments": SegmentJumps(Segments(2))}


def student(name, shape=None, latents: Latents | None = None):
    """Weights and facts of a student, with its facts among the entries of the export."""
    shape = shape or SHAPES.get(name, SHAPE)
    kind, arguments = NETWORKS[name]
    if kind not in ("DiffusersNetwork", "ParametrizedNetwork"):
        arguments = {"data_shape": [*shape], **arguments}
    spec = {"class_path": f"scm_lightning.networks.{kind}", "init_args": arguments}
    torch.manual_seed(0)
    network = untrained_network(spec)
    with torch.no_grad():
        for weight in network.parameters():  # the last layers of new networks are zero
            weight.normal_(std=0.2)
    steps, guided = STEPS.get(name, FreshNoise()), arguments.get("guided", False)
    sampling = StudentSampling(
        steps,
        num_steps=(2,) if name == "segments" else (1, 2),
        intermediate_times=() if name in STEPS else (0.9,),
        scales=(1.2, 1.6) if guided else None,
        guidance_range=(1.0, 2.0) if guided else None,
    )
    has_classes = "num_classes" in arguments or bool(getattr(network, "num_classes", 0))
    data = ShardIndex(
        splits={"train": Split([]), "heldout": Split([])},
        shape=shape,
        dtype="float32" if latents else "uint8",
        num_classes=3 if has_classes else 0,
        class_names=["bag", "coat", "shirt"] if has_classes else [],
        mean=[100.0, 90.0, 80.0][: shape[0]],
        std=[30.0, 40.0, 50.0][: shape[0]],
        max_value=255.0,
        source="numbers of this test",
        latents=latents,
    )
    facts = SamplingFacts(
        "consistency", SIGMA_DATA, spec, sampling, data, {"images": 37}, licence="CC BY-NC-SA 4.0"
    )
    weights = {name: weight.clone() for name, weight in network.state_dict().items()}
    export = Export("consistency", SIGMA_DATA, 5, "ema", "0.05", weights, facts.entries())
    return export, facts
