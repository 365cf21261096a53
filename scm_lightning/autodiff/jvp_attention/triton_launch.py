# SPDX-License-Identifier: Apache-2.0
r"""Launch the Triton kernels: tiles from a table, strides as they are, nothing tuned at run time.

    grid = ceil(M / block_m) B H programs, the blocks of one head next to each other

Triton is optional, and imported at the first use on CUDA: TRITON_INTERPRET, which runs the kernels
on the CPU in tests, is read by that import.
Axes: B batch, H heads, M queries, N keys, D features of q and k, Dv features of v.
"""

import importlib.util
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from scm_lightning.autodiff.jvp_attention.masks import adjacent_features, expand_mask

Kernel = Literal["tangent", "both"]


class Tile(NamedTuple):
    """Shape of one program's work: queries and keys at a time, warps, pipeline stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# (kernel, major compute capability, bytes per element): rows of features up to, tile, tile with a
# mask. Chosen by compilation: no register is spilled, shared memory fits. What is missing spills
# whatever the tile, and is left to the loop over blocks; float32 by three TF32 products (ours).
TILES: dict[tuple[str, int, int], tuple[tuple[int, Tile, Tile], ...]] = {
    ("tangent", 9, 2): (
        (64, Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
        (128, Tile(128, 64, 8, 2), Tile(128, 32, 8, 2)),
        (256, Tile(128, 16, 8, 1), Tile(128, 16, 8, 1)),
    ),
    ("tangent", 8, 2): (
        (64, Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
        (128, Tile(128, 16, 8, 2), Tile(128, 16, 8, 2)),
    ),
    ("tangent", 9, 4): ((64, Tile(128, 32, 8, 1), Tile(128, 16, 8, 1)),),
    ("both", 9, 2): (
        (64, Tile(128, 64, 8, 2), Tile(128, 64, 8, 2)),
        (128, Tile(128, 32, 8, 2), Tile(128, 16, 8, 2)),
    ),
    ("both", 8, 2): ((64, Tile(128, 32, 8, 2), Tile(128, 16, 8, 2)),),
}


def choose_tile(
    kernel: Kernel, features: int, itemsize: int, capability: int, *, masked: bool
) -> Tile | None:
    """Tile of the table, or None where every tile spills.

    Args:
        kernel: "tangent" given o and lse, or "both", with two accumulators.
        features: the larger of D and Dv.
        itemsize: bytes per element, 2 or 4.
        capability: major compute capability; 9 stands for later ones too.
        masked: whether there is a mask.
    """
    for most, plain, with_mask in TILES.get((kernel, min(capability, 9), itemsize), ()):
        if features <= most:
            return with_mask if masked else plain
    return None


def find_tile(kernel: Kernel, q: Tensor, v: Tensor, *, masked: bool) -> Tile | None:
    """Tile with which the kernel runs on these tensors, or None if it does not.

    Args:
        kernel: "tangent" or "both".
        q: queries. (B, H, M, D).
        v: values. (B, H, N, Dv).
        masked: whether there is a mask.
    """
    if q.device.type != "cuda" or q.dtype == torch.float64:
        return None
    if importlib.util.find_spec("triton") is None:
        return None
    capability = torch.cuda.get_device_properties(q.device).major
    features = max(q.shape[-1], v.shape[-1])
    return choose_tile(kernel, features, q.element_size(), capability, masked=masked)


def tangent_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    o: Tensor,
    lse: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    tile: Tile,
) -> Tensor:
    """Derivative of the attention output by one kernel; arguments and result as of `reference`.

    Args:
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).
        v: values. (B, H, N, Dv).
        tq: tangent of q, or None where it is zero. (B, H, M, D).
        tk: tangent of k, or None. (B, H, N, D).
        tv: tangent of v, or None. (B, H, N, Dv).
        o: attention output. (B, H, M, Dv).
        lse: natural log-sum-exp, -inf in fully masked rows. (B, H, M).
        attn_mask: boolean or additive, broadcastable to (B, H, M, N), or None.
        is_causal: whether query m sees keys n <= m alone.
        scale: factor of q k^T.
        tile: shape of one program's work, see `find_tile`.

    Returns:
        Tangent of o, in its data type and layout. (B, H, M, Dv).
    """
    to = torch.empty_like(o)
    launch("tangent", (q, k, v), (tq, tk, tv), (o, to, lse), attn_mask, is_causal, scale, tile)
    return to


def dual_kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention output, its derivative and lse by one kernel.

    Args:
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).
        v: values. (B, H, N, Dv).
        tq: tangent of q, or None where it is zero. (B, H, M, D).
        tk: tangent of k, or None. (B, H, N, D).
        tv: tangent of v, or None. (B, H, N, Dv).
        attn_mask: boolean or additive, broadcastable to (B, H, M, N), or None.
        is_causal: whether query m sees keys n <= m alone.
        scale: factor of q k^T.
        tile: shape of one program's work, see `find_tile`.

    Returns:
        o and to in the data type of v (B, H, M, Dv); lse, float32, natural logarithm (B, H, M).
    """
    o = q.new_empty((*q.shape[:3], v.shape[3]))
    to, lse = torch.empty_like(o), q.new_empty(q.shape[:3], dtype=torch.float32)
    launch("both", (q, k, v), (tq, tk, tv), (o, to, lse), attn_mask, is_causal, scale, tile)
    return o, to, lse


def kernel_options(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    present: list[bool],
    mask: str,
    is_causal: bool,
    tile: Tile,
) -> dict[str, Any]:
    """Options that a kernel is compiled for, besides data types: sizes, flags, warps and stages.

    Args:
        q: queries. (B, H, M, D).
        k: keys. (B, H, N, D).
        v: values. (B, H, N, Dv).
        present: which of q, k and v have a tangent.
        mask: "none", "boolean" or "additive".
        is_causal: whether query m sees keys n <= m alone.
        tile: shape of one program's work.
    """
    D, DV = q.shape[3], v.shape[3]
    return {
        "D": D,
        "DV": DV,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_D": max(16, 1 << (D - 1).bit_length()),
        "BLOCK_DV": max(16, 1 << (DV - 1).bit_length()),
        "HAS_TQ": present[0],
        "HAS_TK": present[1],
        "HAS_TV": present[2],
        "MASK": mask,
        "CAUSAL": is_causal,
        "EVEN_N": k.shape[2] % tile.block_n == 0,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }


def launch(
    kernel: Kernel,
    primals: tuple[Tensor, Tensor, Tensor],
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None],
    outputs: tuple[Tensor, Tensor, Tensor],
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    tile: Tile,
) -> None:
    """Run a kernel on outputs that exist; for an absent tangent it is given q, unread.

    Args:
        kernel: "tangent" or "both".
        primals: q, k and v. (B, H, tokens, features).
        tangents: their tangents, or None.
        outputs: o, to and lse, of which "tangent" reads the first and the last.
        attn_mask: boolean or additive, broadcastable to (B, H, M, N), or None.
        is_causal: whether query m sees keys n <= m alone.
        scale: factor of q k^T.
        tile: shape of one program's work.
    """
    from scm_lightning.autodiff.jvp_attention import triton_kernels

    q, k, v = (adjacent_features(x) for x in primals)
    tq, tk, tv = (q if x is None else adjacent_features(x) for x in tangents)
    o, to, lse = outputs
    assert {o.stride(-1), to.stride(-1)} == {1}, "o and to must have features next to each other"
    kind, mask = "none", q
    if attn_mask is not None:
        kind = "boolean" if attn_mask.dtype == torch.bool else "additive"
        mask = expand_mask(attn_mask, q, k)
        mask = mask.view(torch.uint8) if kind == "boolean" else mask
    present = [x is not None for x in tangents]
    options = kernel_options(q, k, v, present, kind, is_causal, tile)
    (B, H, M), N = q.shape[:3], k.shape[2]
    grid = (-(-M // options["BLOCK_M"]) * B * H,)
    if grid[0] == 0:
        return
    some = [q, k, v, tq, tk, tv, o, lse, to]
    strides = [tuple(x.stride()[:3]) for x in some]
    function = triton_kernels.both if kernel == "both" else triton_kernels.tangent_only
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        function[grid](*some, mask, *strides, tuple(mask.stride()), H, M, N, scale, **options)
