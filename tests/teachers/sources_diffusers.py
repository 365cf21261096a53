# SPDX-License-Identifier: Apache-2.0
"""Small pipelines of diffusers in folders, as save_pretrained writes them, with trained weights.

Public weights are not at hand: these have the structure of published ones, not their size.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from networks import diffusers_models as models
from teachers.toy import train_on_toy
from tiny import wake
from torch import Tensor, nn

from scm_lightning.core import TrigFlow
from scm_lightning.networks import ParametrizedNetwork
from scm_lightning.teachers.diffusers_schedules import process_of
from scm_lightning.teachers.diffusers_teacher import network_of

SHAPE, CLASSES, SIGMA_DATA = (2, 8, 8), 3, 0.7
LINEAR = {"beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear"}
SCALED = {"beta_start": 8.5e-4, "beta_end": 1.2e-2, "beta_schedule": "scaled_linear"}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
V = {"prediction_type": "v_prediction"}
TEXT, POOLED = {"text": (5, 12)}, {"text": (5, 12), "pooled": (10,)}


class Kind(NamedTuple):
    """A pipeline: its class, model, scheduler with settings, and conditions of one sample."""

    pipeline: str
    build: Any
    scheduler: str
    settings: dict[str, Any]
    conditions: dict[str, tuple[int, ...]] = {}  # noqa: RUF012
    shape: tuple[int, ...] = SHAPE

    @property
    def part(self) -> str:
        return "unet" if "UNet" in type(self.build()).__name__ else "transformer"

    def given(self, num: int) -> dict[str, Tensor]:
        """Random conditions."""
        generator = torch.Generator().manual_seed(2)
        shapes = self.conditions.items()
        return {name: torch.randn(num, *shape, generator=generator) for name, shape in shapes}


COSINE = {"beta_schedule": "squaredcos_cap_v2"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
KINDS = {
    "epsilon": Kind("DDPMPipeline", models.unet, "DDPMScheduler", LINEAR),
    "sample": Kind(
        "DDIMPipeline", models.unet, "DDIMScheduler", COSINE | {"prediction_type": "sample"}
    ),
    "v_prediction": Kind(
        "StableDiffusionPipeline",
        models.stable_diffusion,
        "EulerDiscreteScheduler",
        SCALED | V,
        TEXT,
    ),
    "classes": Kind("DDIMPipeline", models.unet, "DDIMScheduler", LINEAR | V),
    "flow": Kind(
        "SanaPipeline", models.sana, "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, TEXT
    ),
    "dit": Kind("DiTPipeline", models.dit, "DDIMScheduler", LINEAR),
    "xl": Kind("StableDiffusionXLPipeline", models.xl, "EulerDiscreteScheduler", SCALED, POOLED),
    "pixart": Kind(
        "PixArtAlphaPipeline", models.pixart, "DPMSolverMultistepScheduler", LINEAR, TEXT
    ),
    "sana, by DPM-Solver": Kind(
        "SanaPipeline", models.sana, "DPMSolverMultistepScheduler", FLOW, TEXT
    ),
    "sd3": Kind(
        "StableDiffusion3Pipeline",
        models.sd3,
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 3.0, "use_dynamic_shifting": True},
        POOLED,
    ),
    "zero SNR": Kind(
        "StableDiffusionPipeline", models.stable_diffusion, "DDIMScheduler", SCALED | V | ZERO, TEXT
    ),
    "flux": Kind(
        "FluxPipeline",
        lambda: models.flux(guidance_embeds=False),
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True},
        POOLED,
    ),
    "aura_flow": Kind(
        "AuraFlowPipeline", models.aura_flow, "FlowMatchEulerDiscreteScheduler", {}, TEXT
    ),
    "lumina2": Kind(
        "Lumina2Pipeline", models.lumina2, "FlowMatchEulerDiscreteScheduler", {"shift": 6.0}, TEXT
    ),
    "hunyuan": Kind(
        "HunyuanDiTPipeline",
        models.hunyuan_dit,
        "DDPMScheduler",
        SCALED | V,
        {"text": (5, 12), "text_t5": (7, 16)},
    ),
    "qwen_image": Kind(
        "QwenImagePipeline", models.qwen_image, "FlowMatchEulerDiscreteScheduler", {}, TEXT
    ),
    "wan": Kind("WanPipeline", models.wan, "UniPCMultistepScheduler", FLOW, TEXT, (2, 3, 8, 8)),
    "cogvideox": Kind(
        "CogVideoXPipeline",
        models.cogvideox,
        "CogVideoXDDIMScheduler",
        SCALED | V | ZERO | {"snr_shift_scale": 3.0},
        TEXT,
        (2, 3, 8, 8),
    ),
}


def write_diffusers(folder: Path, kind: str, steps: int = 60, **options: Any) -> Path:
    """Write a pipeline's folder: denoiser, scheduler, an autoencoder's configuration, a card.

    Args:
        folder: where to.
        kind: name in `KINDS`.
        steps: steps of training, of which `classes` needs 60 to beat a linear filter, others some
            hundreds; 0 for random weights, which is enough where it need not denoise.
        options: of the model's save_pretrained.
    """
    its = KINDS[kind]
    scheduler = getattr(diffusers, its.scheduler)(**its.settings)
    torch.manual_seed(0)
    model = wake(its.build(), std=0.1) if steps == 0 else its.build()
    if steps:
        train(model, scheduler, its, steps)
    part = its.part
    model.save_pretrained(folder / part, safe_serialization=True, **options)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": its.pipeline,
        part: ["diffusers", type(model).__name__],
        "scheduler": ["diffusers", its.scheduler],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "vae").mkdir(exist_ok=True)
    vae = {"_class_name": "AutoencoderKL", "scaling_factor": 0.13025, "shift_factor": 0.0609}
    (folder / "vae" / "config.json").write_text(json.dumps(vae))
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A model\n")
    return folder


def train(model: nn.Module, scheduler: Any, its: Kind, steps: int) -> float:
    """Train a model as one of its scheduler's process; of texts it learns that they say nothing."""
    process = process_of(scheduler, None, TrigFlow(SIGMA_DATA))
    inside, sign = network_of(model, process)
    network = ParametrizedNetwork(inside, process, sign)
    given = its.given(24)
    loss = train_on_toy(
        network,
        [*model.parameters()],
        its.shape,
        CLASSES,
        SIGMA_DATA,
        steps=steps,
        lr=8e-3,
        with_labels=network.num_classes > 0,
        **given,
    )
    model.eval()
    return loss
