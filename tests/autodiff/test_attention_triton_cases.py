# SPDX-License-Identifier: Apache-2.0
"""Cases of the Triton kernels, in Triton's interpreter; conftest.py runs them in a process for it.

Every tensor lies inside a larger one that is NaN all around: a read outside spoils the result, a
write outside is found. bfloat16 is not here, because the interpreter multiplies its bit patterns.
"""

import importlib.util
from itertools import product

import pytest
import torch

from scm_lightning.autodiff.jvp_attention import attention_with_lse
from scm_lightning.autodiff.jvp_attention.reference import reference
from scm_lightning.autodiff.jvp_attention.triton_launch import TILES, Tile, launch

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not there"),
    pytest.mark.usefixtures("interpreted"),
    pytest.mark.timeout(900),  # the first item waits for all: a minute, more beside others
]

B, H, M, N = 2, 3, 37, 29
SMALL = Tile(32, 16, 4, 1)
BOUND = {torch.float32: 1e-5, torch.float16: 2e-3}
BOUND_LARGE = 24 * torch.finfo(torch.float16).eps
"""float16: P * tS is rounded before most of it cancels against o. Measured: 4.4 eps."""
FLOAT32_EPS = torch.finfo(torch.float32).eps
SUBSETS = [subset for subset in product([True, False], repeat=3) if any(subset)]


def banded(x):
    """The same values inside NaN on all sides, features included; the surrounding tensor too."""
    around = torch.full([size + 2 for size in x.shape], torch.nan, dtype=x.dtype)
    inside = around[tuple(slice(1, -1) for _ in x.shape)]
    inside.copy_(x)
    return inside, around


def count_nan(x):
    return int(x.isnan().sum())


def check(tensors, mask=None, is_causal=False, scale=None, tile=SMALL, bound=None):
    """Both kernels on (q, k, v, tq, tk, tv) against float64; bands of the outputs untouched.

    Logits are rounded to float32, by eps / 2 of their size, which is a relative error of the
    weights: with large ones that is most of the error.
    """
    dtype = tensors[0].dtype
    scale = tensors[0].shape[-1] ** -0.5 if scale is None else scale
    exact = [None if x is None else x.double() for x in tensors]
    largest = float((scale * exact[0] @ exact[1].mT).abs().max())
    bound = (BOUND[dtype] if bound is None else bound) + 4 * FLOAT32_EPS * largest
    o, lse = attention_with_lse(*exact[:3], attn_mask=mask, is_causal=is_causal, scale=scale)
    to = reference(*exact, o, lse, mask, is_causal, scale)
    for kernel in ("tangent", "both"):
        given = [o.to(dtype), torch.full_like(to, 7.0).to(dtype), lse.float()]
        if kernel == "both":
            given = [torch.full_like(x, 7.0) for x in given]
        outputs, arounds = zip(*(banded(x) for x in given), strict=True)
        launch(kernel, tensors[:3], tensors[3:], outputs, mask, is_causal, scale, tile)
        for around, x in zip(arounds, given, strict=True):
            assert count_nan(around) == around.numel() - x.numel()
        for actual, expected in zip(outputs[:2], (o, to), strict=True):
            error = (actual.double() - expected).norm() / expected.norm()
            assert float(error) < bound, (kernel, float(error))
        torch.testing.assert_close(outputs[2], lse.float(), rtol=1e-5, atol=1e-5)
    assert float(to.abs().max()) > 0.1
    return to


def draw(randn, D, dtype=torch.float32, DV=None, lengths=(M, N), spread=1.0, heads=(1, 1)):
    """q, k, v and their tangents inside NaN."""
    shapes = [(lengths[0], D), (lengths[1], D), (lengths[1], DV or D)] * 2
    tensors = [randn(*heads, *shape) for shape in shapes]
    tensors[1] *= spread
    return [banded(x.to(dtype))[0] for x in tensors]


@pytest.mark.parametrize("D", [16, 24, 40, 64, 72, 80, 96, 128, 256])
def test_every_head_dimension_in_float32(randn, D):
    check(draw(randn, D))


@pytest.mark.parametrize("D", [40, 64, 128])
def test_float16(randn, D):
    check(draw(randn, D, torch.float16))


def test_large_logits(randn):
    """Eighty times those above: one key has nearly all the weight."""
    check(draw(randn, 64, spread=80.0))
    check(draw(randn, 64, torch.float16, spread=80.0), bound=BOUND_LARGE)


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_absent_tangents(randn, subset, is_causal):
    tensors = draw(randn, 16)
    tensors[3:] = [t if there else None for t, there in zip(tensors[3:], subset, strict=True)]
    check(tensors, is_causal=is_causal)


def masks(randn):
    boolean = randn(B, 1, M, N) > -0.3
    boolean[:, :, 4] = False  # an empty row
    late = torch.ones(M, N, dtype=torch.bool)
    late[5, :20] = False  # a row whose first block is empty
    padding = torch.zeros(B, 1, 1, N).masked_fill(torch.arange(N) > 11, -torch.inf)
    bias = 2 * randn(H, M, N)
    keys = randn(N) > 0
    return {
        "boolean": boolean,
        "late": late,
        "padding": padding,
        "bias": bias,
        "bias float16": bias.half(),
        "keys": keys,
        "transposed": (randn(B, H, N, M) > 0).mT,
    }


@pytest.mark.parametrize(
    "name", ["boolean", "late", "padding", "bias", "bias float16", "keys", "transposed"]
)
def test_masks_in_any_broadcast_shape(randn, name):
    """Also inside NaN where they are floating; rows without keys become 0, 0 and -inf."""
    mask = masks(randn)[name]
    mask = banded(mask)[0] if mask.is_floating_point() else mask
    to = check(draw(randn, 16, heads=(B, H)), mask)
    assert bool(to[:, :, 4].any()) == (name != "boolean")


@pytest.mark.parametrize("lengths", [(37, 64), (64, 37), (1, 29), (37, 1), (48, 32)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_queries_and_keys_of_unlike_lengths(randn, lengths, is_causal):
    """Ragged and even blocks; causal rows beyond the last key see everything."""
    check(draw(randn, 16, lengths=lengths), is_causal=is_causal, scale=0.31)


@pytest.mark.parametrize(("D", "DV"), [(16, 40), (40, 16)])
def test_values_of_another_width(randn, D, DV):
    check(draw(randn, D, DV=DV))


@pytest.mark.parametrize("tile", sorted({row[1] for rows in TILES.values() for row in rows}))
def test_shipped_tiles_over_several_blocks(randn, tile):
    """One block and a rest, both ways."""
    lengths = tile.block_m + 9, 2 * tile.block_n + 5
    check(draw(randn, 16, torch.float16, lengths=lengths), tile=tile)


def test_packed_projections_and_strided_features(randn):
    """Views into (B, tokens, 3, H, D); and features that are not next to each other."""
    packed, _ = banded(randn(B, N, 3, H, 16).float())
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    spaced = randn(B, H, N, 32).float()[..., ::2]
    check([q, k, v, v, spaced, q])
    check([q, k.mT.contiguous().mT, v, v, k, q])
