# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels without a GPU, compiled for two generations; their tiles.

What they compute: test_attention_triton_cases.py.
"""

import importlib.util
import os
import re
import subprocess

import pytest
import torch

from scm_lightning.autodiff.jvp_attention.triton_launch import (
    TILES,
    choose_tile,
    find_tile,
    kernel_options,
)

SHARED_KB = {8: 163, 9: 227}  # per block, of compute capability 8.0 and 9.0
DTYPES = {2: (torch.bfloat16, "*bf16"), 4: (torch.float32, "*fp32")}
ROWS = [(*key, row[0]) for key, rows in TILES.items() for row in rows]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def argument_types(function, constants, dtype_name, mask):
    """Signature of a launch with strides and addresses divisible by 16, as Triton writes it."""
    types, facts = {}, {}
    for i, name in enumerate(function.arg_names):
        aligned = [["tt.divisibility", 16]]
        if name in constants:
            types[name] = "constexpr"
        elif name.endswith("strides"):
            types[name] = ("i32",) * (4 if name.startswith("mask") else 3)
            facts |= {(i, j): aligned for j in range(len(types[name]))}
        elif name == "scale":
            types[name] = "fp32"
        else:
            scalar = {"H": "i32", "M": "i32", "N": "i32", "LSE": "*fp32"}
            masks = {"MASK_POINTER": "*u8"} if mask == "boolean" else {}
            types[name] = (scalar | masks).get(name, dtype_name)
            facts[(i,)] = aligned
    return types, facts


def compile_for(kernel, capability, itemsize, features, mask, is_causal):
    """Registers' spilled bytes, shared memory in KB, and the PTX, of one shipped tile."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    from scm_lightning.autodiff.jvp_attention import triton_kernels

    dtype, dtype_name = DTYPES[itemsize]
    x = torch.empty(1, 1, 4096, features, dtype=dtype, device="meta")
    tile = choose_tile(kernel, features, itemsize, capability, masked=mask != "none")
    constants = kernel_options(x, x, x, (True, True, True), mask, is_causal, tile)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    function = triton_kernels.both if kernel == "both" else triton_kernels.tangent_only
    types, facts = argument_types(function, constants, dtype_name, mask)
    source = ASTSource(function, types, constexprs=constants, attrs=facts)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 10 * capability, 32), options=options
    )
    ptx = compiled.asm["ptx"]
    ptxas = get_ptxas(10 * capability).path  # newer ones for newer generations
    architecture = re.search(r"\.target (\w+)", ptx)[1]
    report = subprocess.run(
        [ptxas, "-v", "--gpu-name", architecture, "-o", os.devnull, "-"],
        input=ptx,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    spilled = int(re.search(r"(\d+) bytes spill stores", report)[1])
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    print(
        f"{registers} registers, {spilled} B spilled, {compiled.metadata.shared / 1024} KB shared"
    )
    return spilled, compiled.metadata.shared / 1024, ptx


@needs_triton
@pytest.mark.parametrize(("kernel", "capability", "itemsize", "features"), ROWS)
@pytest.mark.parametrize(
    ("mask", "is_causal"),
    [
        ("none", False),
        pytest.param("none", True, marks=pytest.mark.slow),
        pytest.param("boolean", False, marks=pytest.mark.slow),
        pytest.param("additive", False, marks=pytest.mark.slow),
    ],
)
def test_shipped_tiles_compile_without_spills(
    monkeypatch, tmp_path, kernel, capability, itemsize, features, mask, is_causal
):
    """By ptxas, for the widest rows of each tile; the tensor cores of sm_90 are used."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    spilled, shared, ptx = compile_for(kernel, capability, itemsize, features, mask, is_causal)
    assert spilled == 0
    assert 0 < shared <= SHARED_KB[capability]
    assert ("wgmma.mma_async" in ptx) == (capability == 9)


def test_tiles_by_width_type_and_generation():
    """No tile where all of them spill; later generations use the newest row."""
    assert choose_tile("tangent", 72, 2, 9, masked=False) == TILES["tangent", 9, 2][1][1]
    assert choose_tile("tangent", 72, 2, 9, masked=True) == TILES["tangent", 9, 2][1][2]
    assert choose_tile("both", 64, 2, 12, masked=False) == TILES["both", 9, 2][0][1]
    for nothing in (("both", 256, 2, 9), ("tangent", 257, 2, 9), ("tangent", 64, 2, 7)):
        assert choose_tile(*nothing, masked=False) is None
    x = torch.empty(1, 1, 4, 64, dtype=torch.float16)
    assert find_tile("tangent", x, x, masked=False) is None  # on the CPU
