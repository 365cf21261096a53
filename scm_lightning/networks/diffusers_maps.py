# SPDX-License-Identifier: Apache-2.0
"""Calls of diffusers' models: what is named differently, and what is constant.

Read from the models and pipelines of diffusers 0.42.1.
Axes: B batch, C channels, F frames, H and W pixels of the data (of latents, one for 8 of the
picture), L tokens, D channels of a token.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scm_lightning.networks.diffusers_layouts import (
    FRAMES_FIRST,
    PACKED,
    cogvideo_rotations,
    hunyuan_rotations,
    positions,
)
from scm_lightning.networks.model_map import ModelMap, Named, no_extras
from scm_lightning.networks.model_times import (
    DiscreteTime,
    FlowTime,
    thousandths,
)

PIXELS = 8
"""Pixels of a picture for one of its latents."""

TEXT = {"text": "encoder_hidden_states"}
MASK = {"text_mask": "encoder_attention_mask"}
UNMASKED = {"text_mask": ""}
POOLED = {"pooled": "pooled_projections"}


def _classes(config: Any) -> dict[str, Any]:
    """Classes of a U-Net, which have no vector for none.

    Raises:
        ValueError: if they are no numbers of classes.
    """
    if config.class_embed_type is not None:
        raise ValueError(
            f"classes of a diffusers model must be those of an embedding, got class_embed_type: "
            f"{config.class_embed_type}; set num_class_embeds alone, or write an adapter"
        )
    num = config.num_class_embeds or 0
    return {"labels": "class_labels" if num else "", "num_classes": num}


def _unet(config: Any) -> ModelMap:
    return ModelMap(
        sample="sample",
        projection="time_proj",
        source_time=DiscreteTime(),
        **_classes(config),
    )


def _unet_condition(config: Any) -> ModelMap:
    kind = config.addition_embed_type
    hidden = config.encoder_hid_dim_type
    if kind not in (None, "text_time") or hidden not in (None, "text_proj"):
        raise ValueError(
            "UNet2DConditionModel must be that of Stable Diffusion 1, 2 or XL, got "
            f"addition_embed_type: {kind}, encoder_hid_dim_type: {hidden}; write an adapter for it"
        )
    large = kind == "text_time"
    pooled = {"pooled": "added_cond_kwargs.text_embeds"} if large else {}
    sizes = {"time_ids": "added_cond_kwargs.time_ids"} if large else {}
    return ModelMap(
        sample="sample",
        projection="time_proj",
        conditions=TEXT | pooled,
        optional=MASK | sizes,
        extras=_sizes_of_xl if large else no_extras,
        source_time=DiscreteTime(8.5e-4, 1.2e-2, root=True),
        **_classes(config),
    )


def _sizes_of_xl(config: Any, u: Tensor, named: Named) -> dict[str, Any]:
    """Height and width of the original, its crop's corner, and those of the picture."""
    height, width = (PIXELS * each for each in u.shape[-2:])
    return {"added_cond_kwargs.time_ids": _row(u, height, width, 0, 0, height, width)}


def _row(u: Tensor, *numbers: float) -> Tensor:
    row = torch.tensor(numbers, dtype=u.dtype, device=u.device)
    return row.repeat(u.shape[0], 1)


def _dit(config: Any) -> ModelMap:
    num = config.num_embeds_ada_norm
    return ModelMap(
        labels="class_labels",
        null_class=num,
        num_classes=num,
        variance=True,
        source_time=DiscreteTime(),
    )


def _pixart(config: Any) -> ModelMap:
    names = ("resolution", "aspect_ratio")
    sized = config.use_additional_conditions
    return ModelMap(
        conditions=TEXT,
        optional=MASK | ({name: f"added_cond_kwargs.{name}" for name in names} if sized else {}),
        extras=_sizes_of_pixart if sized else _no_sizes,
        variance=True,
        source_time=DiscreteTime(),
    )


def _sizes_of_pixart(config: Any, u: Tensor, named: Named) -> dict[str, Any]:
    height, width = (PIXELS * each for each in u.shape[-2:])
    sizes = {"resolution": _row(u, height, width), "aspect_ratio": _row(u, height / width)}
    return {f"added_cond_kwargs.{name}": size for name, size in sizes.items()}


def _no_sizes(config: Any, u: Tensor, named: Named) -> dict[str, Any]:
    return {"added_cond_kwargs.resolution": None, "added_cond_kwargs.aspect_ratio": None}


def _sana(config: Any) -> ModelMap:
    sprint = config.guidance_embeds
    return ModelMap(
        conditions=TEXT,
        optional=MASK,
        guidance="guidance" if sprint else "",
        guidance_factor=config.guidance_embeds_scale,
        source_time=FlowTime(1 if sprint else 1000),
    )


def _sd3(config: Any) -> ModelMap:
    return ModelMap(
        conditions=TEXT | POOLED,
        optional=UNMASKED,
        zeroes_text=True,
        source_time=FlowTime(1000),
    )


def _flux(config: Any) -> ModelMap:
    return ModelMap(
        told=thousandths,
        projection="time_text_embed.time_proj",
        inside=1000,
        conditions=TEXT | POOLED,
        optional=UNMASKED,
        zeroes_text=True,
        extras=_positions_of_flux,
        guidance="guidance" if config.guidance_embeds else "",
        layout=PACKED,
        source_time=FlowTime(),
    )


def _positions_of_flux(config: Any, u: Tensor, named: Named) -> dict[str, Any]:
    words = torch.zeros(named["text"].shape[1], 3, device=u.device)
    return {"img_ids": positions(u), "txt_ids": words}


def _aura_flow(config: Any) -> ModelMap:
    return ModelMap(
        told=thousandths,
        conditions=TEXT,
        optional=UNMASKED,
        zeroes_text=True,
        source_time=FlowTime(),
    )


def _lumina2(config: Any) -> ModelMap:
    return ModelMap(
        conditions=TEXT,
        optional=MASK,
        extras=_whole_text,
        source_time=FlowTime(from_noise=True),
    )


def _whole_text(config: Any, u: Tensor, named: Named) -> dict[str, Any]:
    return {"encoder_attention_mask": _all(named["text"])}


def _all(text: Tensor) -> Tensor:
    return torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)


def _hunyuan_dit(config: Any) -> ModelMap:
    styled = config.use_style_cond_and_image_meta_size
    named = {"image_meta_size": "image_meta_size", "style": "style"}
    masks = {"text_mask": "text_embedding_mask", "text_t5_mask": "text_embedding_mask_t5"}
    return ModelMap(
        conditions=TEXT | {"text_t5": "encoder_hidden_states_t5"},
        optional=masks | (named if styled else {}),
        extras=_extras_of_hunyuan,
        variance=True,
    )


def _extras_of_hunyuan(config: Any, u: Tensor, named: Named) -> dict[str, Any]:
    height, width = (PIXELS * each for each in u.shape[-2:])
    extras = {
        "image_rotary_emb": hunyuan_rotations(config, u),
        "text_embedding_mask": _all(named["text"]),
        "text_embedding_mask_t5": _all(named["text_t5"]),
    }
    if config.use_style_cond_and_image_meta_size:
        extras["image_meta_size"] = _row(u, height, width, height, width, 0, 0)
        extras["style"] = torch.zeros(u.shape[0], dtype=torch.int64, device=u.device)
    return extras


def _qwen_image(config: Any) -> ModelMap:
    return ModelMap(
        told=thousandths,
        projection="" if config.zero_cond_t else "time_text_embed.time_proj",
        conditions=TEXT,
        optional={"text_mask": "encoder_hidden_states_mask"},
        extras=_shapes_of_qwen,
        layout=PACKED,
        source_time=FlowTime(),
    )


def _shapes_of_qwen(config: Any, u: Tensor, named: Named) -> dict[str, Any]:
    *_, height, width = u.shape
    return {"img_shapes": [[(1, height // 2, width // 2)]] * u.shape[0]}


def _wan(config: Any) -> ModelMap:
    return ModelMap(
        conditions=TEXT, optional=UNMASKED, zeroes_text=True, source_time=FlowTime(1000)
    )


def _cogvideox(config: Any) -> ModelMap:
    return ModelMap(
        conditions=TEXT,
        optional=UNMASKED,
        zeroes_text=True,
        extras=_rotations_of_cogvideox,
        layout=FRAMES_FIRST,
    )


def _rotations_of_cogvideox(config: Any, u: Tensor, named: Named) -> dict[str, Any]:
    rotary = config.use_rotary_positional_embeddings
    return {"image_rotary_emb": cogvideo_rotations(config, u) if rotary else None}


MAPS: dict[str, Callable[[Any], ModelMap]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _unet_condition,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SanaTransformer2DModel": _sana,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "AuraFlowTransformer2DModel": _aura_flow,
    "Lumina2Transformer2DModel": _lumina2,
    "HunyuanDiT2DModel": _hunyuan_dit,
    "QwenImageTransformer2DModel": _qwen_image,
    "WanTransformer3DModel": _wan,
    "CogVideoXTransformer3DModel": _cogvideox,
}
"""By the name of the model's class: diffusers need not be installed to import this."""


def map_of(model: Any) -> ModelMap:
    """The map of a model of diffusers, by its class and its configuration.

    Raises:
        ValueError: if there is none.
    """
    name = type(model).__name__
    if name not in MAPS:
        raise ValueError(
            f"{name} is not among the models of diffusers whose call is known: {', '.join(MAPS)}; "
            "write an adapter: give DiffusersNetwork a ModelMap of it as model_map, or call it in "
            "a module of your own"
        )
    return MAPS[name](model.config)
