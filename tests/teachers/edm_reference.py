# SPDX-License-Identifier: Apache-2.0
"""EDM's networks written out from their formulas, on flat weights by their published names.

Independent of the package: no layers, the blocks in the order of the names, every formula from the
papers. `F_of` is TrigFlow's F of the denoiser D(x; sigma), by its definition.
Source: Karras et al., arXiv 2206.00364, Table 1, Appendices C and F; names of NVlabs/edm.
"""

import functools
import math

import torch
import torch.nn.functional as f
from torch import Tensor

Weights = dict[str, Tensor]
NUMBERS = {
    "beta_d": 19.9,
    "beta_min": 0.1,
    "M": 1000,
    "C_1": 0.001,
    "C_2": 0.008,
}


def group_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    groups = min(32, x.shape[1] // 4)
    return f.group_norm(x, groups, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def resampled(x: Tensor, way: str, taps: tuple[int, ...], outside: int | None = None) -> Tensor:
    """Mean of pixels with weights `taps` in both directions, as a matrix on rows and columns.

    Halved, pixel i is made of those from 2 i - outside; doubled, pixel i is spread from there.
    """
    outside = (len(taps) - 1) // 2 if outside is None else outside
    matrix = resampling(x.shape[-1], way, taps, outside).to(x.dtype)
    return matrix @ x @ matrix.T


@functools.cache
def resampling(many: int, way: str, taps: tuple[int, ...], outside: int) -> Tensor:
    """Matrix that halves or doubles `many` pixels. float64."""
    few = (many + 2 * outside - len(taps)) // 2 + 1
    if way == "up":
        many, few = 2 * many, many
    matrix = torch.zeros(few, many).double()
    for i in range(few):
        for k, tap in enumerate(taps):
            if 0 <= 2 * i + k - outside < many:
                matrix[i, 2 * i + k - outside] = tap / sum(taps)
    return matrix if way == "down" else 2 * matrix.T


def convolved(w: Weights, name: str, x: Tensor) -> Tensor:
    weight = w[f"{name}.weight"]
    return f.conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def block(w: Weights, name: str, x: Tensor, emb: Tensor, kind: str) -> Tensor:
    adm = kind == "adm"
    eps, c = (1e-5, 1.0) if adm else (1e-6, math.sqrt(0.5))
    taps = (1, 3, 3, 1) if kind == "ncsnpp" else (1, 1)
    way = name.rpartition("_")[2]
    h, skip = f.silu(group_norm(w, f"{name}.norm0", x, eps)), x
    if way in ("up", "down"):
        h, skip = resampled(h, way, taps), resampled(skip, way, taps)
    if f"{name}.skip.weight" in w:
        skip = convolved(w, f"{name}.skip", skip)
    h = convolved(w, f"{name}.conv0", h)
    affine = linear(w, f"{name}.affine", emb)[:, :, None, None]
    if kind == "trigflow":
        scale, shift = (
            a / (a.square().mean(1, keepdim=True) + 1e-8).sqrt() for a in affine.chunk(2, 1)
        )
        h = group_norm(w, f"{name}.norm1", h, eps) * scale + shift
    elif adm:
        scale, shift = affine.chunk(2, 1)
        h = group_norm(w, f"{name}.norm1", h, eps) * (1 + scale) + shift
    else:
        h = group_norm(w, f"{name}.norm1", h + affine, eps)
    y = c * (skip + convolved(w, f"{name}.conv1", f.silu(h)))
    if f"{name}.qkv.weight" in w:
        heads = y.shape[1] // 64 if adm else 1
        qkv = convolved(w, f"{name}.qkv", group_norm(w, f"{name}.norm2", y, eps))
        q, k, v = qkv.reshape(len(y), heads, -1, 3, y[0, 0].numel()).unbind(3)  # (B, H, D, L)
        attend = (torch.einsum("bhdi,bhdj->bhij", q, k) / math.sqrt(q.shape[2])).softmax(-1)
        mixed = torch.einsum("bhij,bhdj->bhdi", attend, v).reshape(y.shape)
        y = c * (y + convolved(w, f"{name}.proj", mixed))
    return y


def kind_of(w: Weights) -> str:
    if "out_conv.weight" in w:
        return "adm"
    if "map_noise.freqs" in w:
        return "ncsnpp"
    affine = w[next(name for name in w if name.endswith(".affine.weight"))]
    conv = w[next(name for name in w if name.endswith(".conv0.weight"))]
    return "ddpmpp" if len(affine) == len(conv) else "trigflow"


def seen(w: Weights, c_noise: Tensor, kind: str) -> Tensor:
    """Features of the noise: cosines before sines in ADM, behind them in the others."""
    columns = w["map_layer0.weight"].shape[1]
    index = torch.arange(columns // 2, dtype=c_noise.dtype)
    if kind == "ncsnpp":
        angles = 2 * math.pi * c_noise[:, None] * w["map_noise.freqs"]
    else:
        last = columns // 2 - (0 if kind == "adm" else 1)
        angles = c_noise[:, None] * 10000 ** -(index / last)
    cos_sin = (angles.cos(), angles.sin())
    return torch.cat(cos_sin if kind == "adm" else cos_sin[::-1], 1)


def embedded(
    w: Weights,
    c_noise: Tensor,
    one_hot: Tensor | None,
    augment: Tensor | None,
    t_end: Tensor | None,
    kind: str,
) -> Tensor:
    features = seen(w, c_noise, kind)
    if t_end is not None:
        features = features + linear(w, "map_t_k", seen(w, t_end, kind))
    if augment is not None:
        features = features + linear(w, "map_augment", augment)
    if one_hot is not None and kind != "adm":
        features = features + linear(w, "map_label", one_hot * math.sqrt(one_hot.shape[1]))
    emb = linear(w, "map_layer1", f.silu(linear(w, "map_layer0", features)))
    if one_hot is not None and kind == "adm":
        emb = emb + linear(w, "map_label", one_hot)
    return f.silu(emb)


def output(
    w: Weights,
    x: Tensor,
    c_noise: Tensor,
    one_hot: Tensor | None = None,
    augment: Tensor | None = None,
    t_end: Tensor | None = None,
) -> Tensor:
    """Output of the network of weights without the prefix `model.`."""
    kind = kind_of(w)
    emb = embedded(w, c_noise, one_hot, augment, t_end, kind)
    parts = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in w if name[3] == "."))
    kept: list[Tensor] = []
    h, before = x, x
    for name in parts:
        if name.endswith("_aux_residual"):
            wide = f.conv2d(before, w[f"{name}.weight"], padding=2)  # one pixel more on every side
            again = resampled(wide, "down", (1, 3, 3, 1), 0) + w[f"{name}.bias"][:, None, None]
            h = before = kept[-1] = (h + again) / math.sqrt(2)
        elif name.startswith("enc."):
            h = block(w, name, h, emb, kind) if "_conv" not in name else convolved(w, name, h)
            kept.append(h)
        elif name.endswith("_aux_norm"):
            h = group_norm(w, name, h, 1e-6)
        elif name.endswith("_aux_conv"):
            return convolved(w, name, f.silu(h))
        else:
            if "_block" in name:
                h = torch.cat([h, kept.pop()], 1)
            h = block(w, name, h, emb, kind)
    return convolved(w, "out_conv", f.silu(group_norm(w, "out_norm", h, 1e-5)))


def table(M: int, C_1: float, C_2: float) -> Tensor:
    """Noises of iDDPM, the largest first and 0 last. (M + 1,), float64."""
    alpha_bar = (math.pi / 2 * torch.arange(M + 1).double() / M / (C_2 + 1)).sin() ** 2
    u = torch.zeros(M + 1).double()
    for j in range(M, 0, -1):
        ratio = (alpha_bar[j - 1] / alpha_bar[j]).clamp(min=C_1)
        u[j - 1] = ((u[j] ** 2 + 1) / ratio - 1).sqrt()
    return u


def denoised(
    w: Weights,
    x: Tensor,
    sigma: Tensor,
    one_hot: Tensor | None = None,
    precond: str = "EDMPrecond",
    sigma_data: float = 0.5,
) -> Tensor:
    """Denoiser D(x; sigma). x is in data units, sigma is (B,)."""
    s = sigma[:, None, None, None]
    v, c_skip = sigma_data**2, 1.0
    if precond == "EDMPrecond":
        c_skip, c_out = v / (s**2 + v), s * sigma_data / (s**2 + v).sqrt()
        c_in, c_noise = 1 / (s**2 + v).sqrt(), sigma.log() / 4
    elif precond == "VPPrecond":
        d, least = NUMBERS["beta_d"], NUMBERS["beta_min"]
        time = ((least**2 + 2 * d * (1 + sigma**2).log()).sqrt() - least) / d
        c_out, c_in, c_noise = -s, 1 / (s**2 + 1).sqrt(), (NUMBERS["M"] - 1) * time
    elif precond == "VEPrecond":
        c_out, c_in, c_noise = s, torch.ones_like(s), (sigma / 2).log()
    else:
        u = table(int(NUMBERS["M"]), NUMBERS["C_1"], NUMBERS["C_2"]).to(x.dtype)
        index = (sigma[:, None] - u).abs().argmin(1)
        c_out, c_in = -s, 1 / (s**2 + 1).sqrt()
        c_noise = (NUMBERS["M"] - 1 - index).to(x.dtype)
    F = output(w, c_in * x, c_noise, one_hot)
    return c_skip * x + c_out * F[:, : x.shape[1]]


def F_of(
    w: Weights,
    u: Tensor,
    t: Tensor,
    labels: Tensor | None = None,
    precond: str = "EDMPrecond",
    sigma_data: float = 0.5,
) -> Tensor:
    """TrigFlow's F, cos t u - D / sigma_data over sin t, of labels -1 for zeros."""
    classes = w["map_label.weight"].shape[1] if "map_label.weight" in w else 0
    one_hot = None
    if classes and labels is not None:
        one_hot = f.one_hot(labels.clamp(min=0), classes).to(u.dtype) * (labels >= 0)[:, None]
    x = sigma_data * u / t.cos()[:, None, None, None]
    D = denoised(w, x, sigma_data * t.tan(), one_hot, precond, sigma_data)
    angle = t[:, None, None, None]
    return (angle.cos() * u - D / sigma_data) / angle.sin()
