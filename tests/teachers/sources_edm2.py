# SPDX-License-Identifier: Apache-2.0
"""Small trained networks of EDM2 and edm2_sCM, written as they are published, and their formulas.

The published files can't be had in a test: these have the same names, nesting and kinds of numbers.
The networks are computed here from the tensors by their published names, and from nothing of the
package: what the package makes of a file is compared with it.

    EDM2        F(x; c) with c = log(sigma) / 4; its denoiser is c_skip x + c_out F
    edm2_sCM    F(x; t), with our sign

Source: arXiv 2312.02696, Section 2 and Appendix B; arXiv 2206.00364, Table 1; for names and the
order of numbers NVlabs/edm2 and EpiGenomicsCode/edm2_sCM.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from storage.persistent_replica import Node, stability_encoder, tree, write_persistent
from teachers.toy import train_on_toy
from torch import Tensor

SHAPE, SIGMA_DATA, NUM_CLASSES = (3, 8, 8), 0.4, 5
CHANNELS, MULTIPLES, HEAD = 16, (1, 2), 16
LATENT_SHAPE = (4, 8, 8)


@dataclass(frozen=True)
class Source:
    """A tiny network in the layout of its source.

    Args:
        is_scm: edm2_sCM's, instead of EDM2's.
        num_classes: classes; 0 for none.
        shape: of its data.
        has_segments: whether it takes the end of a segment.
    """

    is_scm: bool = False
    num_classes: int = NUM_CLASSES
    shape: tuple[int, ...] = SHAPE
    has_segments: bool = False

    def random(self) -> dict[str, Tensor]:
        """Fresh tensors by their published names, in the order of the modules."""
        torch.manual_seed(3)
        emb, found = max(MULTIPLES) * CHANNELS, {}

        def add(name, *shape):
            found[f"unet.{name}"] = torch.randn(shape)

        found["unet.out_gain"] = torch.tensor(0.3)
        if self.is_scm:
            half = CHANNELS // 2
            found["unet.emb_pos.freqs"] = 10000.0 ** -(torch.arange(half) / (half - 1))
        else:
            found["unet.emb_fourier.freqs"] = 2 * math.pi * torch.randn(CHANNELS)
            found["unet.emb_fourier.phases"] = 2 * math.pi * torch.rand(CHANNELS)
        add("emb_noise.weight", emb, CHANNELS)
        if self.has_segments:
            add("emb_t_k.weight", emb, CHANNELS)
            found["unet.emb_t_k.weight"] *= 0.2
        if self.num_classes:
            add("emb_label.weight", emb, self.num_classes)

        def block(name, before, after, is_encoder, attends=False):
            if not self.is_scm:
                found[f"unet.{name}.emb_gain"] = torch.tensor(0.2)
            add(f"{name}.conv_res0.weight", after, after if is_encoder else before, 3, 3)
            add(f"{name}.emb_linear.weight", (1 + self.is_scm) * after, emb)
            add(f"{name}.conv_res1.weight", after, after, 3, 3)
            if before != after:
                add(f"{name}.conv_skip.weight", after, before, 1, 1)
            if attends:
                add(f"{name}.attn_qkv.weight", 3 * after, after, 1, 1)
                add(f"{name}.attn_proj.weight", after, after, 1, 1)

        wide = 2 * CHANNELS
        add("enc.8x8_conv.weight", CHANNELS, self.shape[0] + 1, 3, 3)
        block("enc.8x8_block0", CHANNELS, CHANNELS, True)
        block("enc.4x4_down", CHANNELS, CHANNELS, True)
        block("enc.4x4_block0", CHANNELS, wide, True, attends=True)
        block("dec.4x4_in0", wide, wide, False, attends=True)
        block("dec.4x4_in1", wide, wide, False)
        block("dec.4x4_block0", wide + wide, wide, False, attends=True)
        block("dec.4x4_block1", wide + CHANNELS, wide, False, attends=True)
        block("dec.8x8_up", wide, wide, False)
        block("dec.8x8_block0", wide + CHANNELS, CHANNELS, False)
        block("dec.8x8_block1", CHANNELS + CHANNELS, CHANNELS, False)
        add("out_conv.weight", self.shape[0], CHANNELS, 3, 3)
        found["logvar_linear.weight"] = torch.randn(1, 128)
        return found

    def output(self, p, u, c, labels=None, t_k=None) -> Tensor:
        """What the published network makes of u, its time c, and classes (-1 for none)."""
        p = {name.removeprefix("unet."): each for name, each in p.items()}
        emb = self.features(p, c) @ rows(p["emb_noise.weight"]).T
        if t_k is not None:
            emb = emb + self.features(p, t_k) @ p["emb_t_k.weight"].T
        if self.num_classes:
            one_hot = torch.zeros(len(u), self.num_classes, dtype=u.dtype)
            for sample, label in enumerate(labels.tolist()):
                one_hot[sample, label] = math.sqrt(self.num_classes) * (label >= 0)
            emb = (emb + one_hot @ rows(p["emb_label.weight"]).T) / math.sqrt(2)
        emb = silu(emb)
        x = conv(torch.cat([u, torch.ones_like(u[:, :1])], dim=1), p["enc.8x8_conv.weight"])
        kept = [x]
        for name in ("enc.8x8_block0", "enc.4x4_down", "enc.4x4_block0"):
            kept.append(x := self.block(p, name, x, emb))
        for name in (
            "4x4_in0",
            "4x4_in1",
            "4x4_block0",
            "4x4_block1",
            "8x8_up",
            "8x8_block0",
            "8x8_block1",
        ):
            if "block" in name:
                y = kept.pop()
                a, b = x.shape[1], y.shape[1]
                x = torch.cat([x / math.sqrt(a), y / math.sqrt(b)], 1) * math.sqrt((a + b) / 2)
            x = self.block(p, f"dec.{name}", x, emb)
        return conv(x, p["out_conv.weight"]) * p["out_gain"]

    def features(self, p, c):
        """Of mean square 1."""
        if not self.is_scm:
            angles = c[:, None] * p["emb_fourier.freqs"] + p["emb_fourier.phases"]
            return math.sqrt(2) * angles.cos()
        angles = c[:, None] * p["emb_pos.freqs"]
        return math.sqrt(2) * torch.cat([angles.cos(), angles.sin()], dim=1)

    def block(self, p, name, x, emb):
        """Figure 21 of EDM2; of edm2_sCM with scale and shift of unit length."""

        def weight(part):
            return p.get(f"{name}.{part}.weight")

        if name.endswith("_down"):
            x = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))
        elif name.endswith("_up"):
            x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        skip = weight("conv_skip")
        if name.startswith("enc"):
            x = unit(x if skip is None else conv(x, skip), 1)
        y, condition = conv(silu(x), weight("conv_res0")), emb @ rows(weight("emb_linear")).T
        if self.is_scm:
            scale, shift = (unit(each, 1)[:, :, None, None] for each in condition.chunk(2, 1))
            y = unit(y, 1) * scale + shift
        else:
            y = y * (1 + p[f"{name}.emb_gain"] * condition)[:, :, None, None]
        y = conv(silu(y), weight("conv_res1"))
        if name.startswith("dec") and skip is not None:
            x = conv(x, skip)
        x = mixed(x, y)
        if weight("attn_qkv") is None:
            return x
        # Row h 3D + 3d + j: head h, channel d, and j = 0, 1, 2 for query, key, value.
        q, k, v = unit(conv(x, weight("attn_qkv")).reshape(len(x), -1, HEAD, 3, 16), 2).unbind(3)
        weights = (q.mT @ k / math.sqrt(HEAD)).softmax(-1)
        return mixed(x, conv((v @ weights.mT).reshape(x.shape), weight("attn_proj")))

    def F(self, p, u, t, labels=None, t_k=None) -> Tensor:
        """TrigFlow's F of it."""
        if self.is_scm:
            return self.output(p, u, t, labels, t_k)
        return -self.output(p, u, (SIGMA_DATA * t.tan()).log() / 4, labels)

    def tree(self, p, **kwargs) -> Node:
        """The nesting of its file."""
        classes = {"": "TrigFlowPrecond", "unet": "TrigFlowUNet"}
        classes = classes if self.is_scm else {"": "Precond", "unet": "UNet"}
        classes |= {"unet.enc": "ModuleDict", "unet.dec": "ModuleDict"}
        classes |= {"unet.emb_pos": "PositionalEmbedding", "unet.emb_fourier": "MPFourier"}
        paths = {name.rpartition(".")[0] for name in p}
        blocks = {path.rpartition(".")[0] for path in paths if path.endswith("conv_res0")}
        classes |= dict.fromkeys(blocks, "Block")
        given = {"img_resolution": 8, "img_channels": self.shape[0], "label_dim": self.num_classes}
        built = {"model_channels": CHANNELS, "channel_mult": list(MULTIPLES), "num_blocks": 1}
        built |= {"attn_resolutions": [4], "channels_per_head": HEAD, **kwargs}
        buffers = {name for name in p if name.endswith((".freqs", ".phases"))}
        attributes = {"": {**given, "sigma_data": SIGMA_DATA, "use_fp16": True}}
        attributes |= {block: {"dropout": 0, "num_heads": 0} for block in blocks}
        return tree(
            p,
            classes,
            kwargs={"": given | built},
            attributes=attributes,
            buffers=buffers,
            default="MPConv",
        )


def unit(x, dim):
    """EDM2's normalization: its constant stands beside the root."""
    return x / (x.square().mean(dim, keepdim=True).sqrt() + 1e-4)


def rows(weight):
    """Weights of norm 1 per output, as they are used."""
    flat = weight.flatten(1)
    return (unit(flat, 1) / math.sqrt(flat.shape[1])).reshape(weight.shape)


def conv(x, weight):
    return torch.nn.functional.conv2d(x, rows(weight), padding=weight.shape[-1] // 2)


def silu(x):
    return x * x.sigmoid() / 0.596


def mixed(x, y):
    return (0.7 * x + 0.3 * y) / math.sqrt(0.7**2 + 0.3**2)


@cache
@torch.enable_grad()
def trained(source: Source) -> dict[str, Tensor]:
    """Tensors of a network that denoises the toy data; by their published names."""
    p = source.random()
    fixed = ("freqs", "phases", "emb_t_k.weight", "logvar_linear.weight")
    parameters = [each.requires_grad_() for name, each in p.items() if not name.endswith(fixed)]
    classes = source.num_classes
    train_on_toy(
        lambda u, t, labels: source.F(p, u, t, labels),
        parameters,
        source.shape,
        classes or NUM_CLASSES,
        SIGMA_DATA,
        steps=60,
        lr=2e-2,
        with_labels=bool(classes),
    )
    return {name: each.detach() for name, each in p.items()}


def write_edm2(
    folder: Path,
    *,
    num_classes: int = NUM_CLASSES,
    dtype: torch.dtype = torch.float16,
    shape: tuple[int, ...] = SHAPE,
    name: str | None = None,
    tensors: dict[str, Tensor] | None = None,
    **kwargs: object,
) -> Path:
    """Write a network of EDM2; of latents if `shape` has four channels.

    Returns:
        The file. Its data are `toy_data(num, SHAPE, NUM_CLASSES, SIGMA_DATA)`.
    """
    source = Source(num_classes=num_classes, shape=shape)
    p = trained(source) if tensors is None else tensors
    name = name or f"edm2-img8-xxs{'' if num_classes else '-uncond'}-0002048-0.075.pkl"
    encoder = stability_encoder() if shape[0] == 4 else None
    return write_persistent(folder / name, source.tree(p, **kwargs), encoder=encoder, dtype=dtype)


def write_edm2_scm(
    folder: Path,
    *,
    num_classes: int = NUM_CLASSES,
    dtype: torch.dtype = torch.float16,
    loss: str = "TrigFlowLoss",
    has_segments: bool = False,
    name: str = "phema-0002048-0.114.pkl",
    tensors: dict[str, Tensor] | None = None,
    **numbers: object,
) -> Path:
    """Write a network of edm2_sCM with EDM2's layers: a teacher, or by its loss a student.

    Args:
        folder: where.
        num_classes: classes; 0 for none.
        dtype: of all tensors.
        loss: TrigFlowLoss, TrigFlowSCMLoss or TrigFlowMSSCDLoss.
        has_segments: whether it takes the end of a segment.
        name: of the file.
        tensors: by their published names; None for trained ones.
        numbers: attributes of the loss.

    Returns:
        The file. Its data are `toy_data(num, SHAPE, NUM_CLASSES, SIGMA_DATA)`.
    """
    source = Source(is_scm=True, num_classes=num_classes, has_segments=has_segments)
    p = trained(source) if tensors is None else tensors
    numbers = {"P_mean": -1.0, "P_std": 1.4, "sigma_data": SIGMA_DATA, **numbers}
    is_student = loss != "TrigFlowLoss"
    teacher = {"teacher_net": source.tree(p)} if is_student else {}
    given = Node(loss, attributes=numbers, init_kwargs=teacher, is_module=False)
    return write_persistent(
        folder / name,
        source.tree(p, segment_conditioning=has_segments),
        "edm2_scm",
        loss_fn=given,
        dtype=dtype,
    )
