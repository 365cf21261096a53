# SPDX-License-Identifier: Apache-2.0
"""Torch's forward mode, repaired: layouts, autocast and dropout masks of a plain forward."""

from itertools import product

import pytest
import torch
from test_computer import METHODS, SHAPE, SIGMA_DATA, dit, inputs, mlp, unet
from tiny import derive, wake

from scm_lightning.autodiff.repaired_jvp import jvp
from scm_lightning.core import expand_time
from scm_lightning.networks import EDM2UNet

LAYOUTS = [torch.contiguous_format, torch.channels_last]
nnf = torch.nn.functional


def edm2(dropout):
    return EDM2UNet(
        SHAPE,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attention_pixels=(6,),
        channels_per_head=8,
        num_classes=3,
        guided=True,
        dropout=dropout,
    )


UNETS = (unet, edm2)
"""Networks to which the layout of an image makes a difference."""


def single(given, layout=torch.contiguous_format):
    """The same inputs in float32 and a layout."""
    given = {k: v.float() if torch.is_tensor(v) and v.ndim != 1 else v for k, v in given.items()}
    given |= {name: given[name].float() for name in ("t", "guidance")}
    return given | {k: given[k].contiguous(memory_format=layout) for k in ("x_t", "dx_dt")}


@pytest.mark.parametrize(
    ("build", "layout"),
    [*((build, LAYOUTS[0]) for build in (mlp, unet, dit, edm2)), *((b, LAYOUTS[1]) for b in UNETS)],
)
def test_value_is_a_plain_forward_and_the_derivative_belongs_to_it(randn, build, layout):
    """Value to rounding, from the same seed; derivative against float64's own.

    Torch's forward mode raises on group norms, on channels-last activations and under autocast.
    """
    network, given = wake(build(0.4)).double().train(), inputs(randn)
    torch.manual_seed(7)
    _, expected = derive("two_pass", network, given)
    network, given = network.float().to(memory_format=layout), single(given, layout)
    for autocast, method in product((False, True), ("func", "two_pass")):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            torch.manual_seed(7)
            F, J = derive(method, network, given)
            torch.manual_seed(7)
            plain = network(
                given["x_t"] / SIGMA_DATA, given["t"], given["labels"], given["guidance"]
            )
        error = float((F - plain).detach().norm() / plain.detach().norm())
        assert error < (0.03 if autocast else 2e-6), (autocast, method)
        if layout is torch.contiguous_format:  # the mask that float64's run drew too
            error = float((J.double() - expected).norm() / expected.norm())
            assert error < (0.04 if autocast else 2e-6), (autocast, method)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("drop", [nnf.dropout, nnf.dropout2d])
@pytest.mark.parametrize("method", METHODS)
def test_all_methods_drop_what_a_plain_forward_drops(randn, layout, drop, method):
    """Where dropout zeroes the output, it zeroes the derivative; the mask is the seed's own."""
    given = single(inputs(randn), layout)
    given["dx_dt"] = given["dx_dt"].contiguous()  # the layout is that of x_t alone

    def network(u, t, labels, guidance):
        return drop(u * expand_time(t, u).cos(), p=0.5)

    torch.manual_seed(3)
    F, J = derive(method, network, given)
    torch.manual_seed(3)
    plain = network(given["x_t"] / SIGMA_DATA, given["t"], None, None)
    torch.testing.assert_close(F, plain, rtol=0, atol=0)
    assert torch.equal(F == 0, J == 0)
    assert 0.2 < float((F == 0).double().mean()) < 0.8


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_in_place_and_outside_of_training(randn, inplace):
    x, tx = randn(4, 6), randn(4, 6)
    for training in (False, True):
        torch.manual_seed(1)
        y, ty = jvp(lambda x, _, on=training: nnf.dropout(2 * x, 0.3, on, inplace), (x, x), (tx, x))
        torch.manual_seed(1)
        torch.testing.assert_close(y, nnf.dropout(2 * x, 0.3, training))
        torch.testing.assert_close(ty * x, y * tx)


@pytest.mark.parametrize(
    "norm",
    [
        lambda x, w: nnf.group_norm(x, 2, w, w),
        lambda x, w: nnf.group_norm(x, 2),
        lambda x, w: nnf.instance_norm(x, weight=w, bias=w),
        lambda x, w: nnf.batch_norm(x, w, w, w, w),
        lambda x, w: nnf.layer_norm(x, x.shape[-1:], w[:6], w[:6]),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tangents_of_norms_have_the_type_of_the_value(randn, norm, layout):
    """A convolution behind takes them, under autocast; value and derivative stay right."""
    w = torch.linspace(0.5, 1.5, 8)
    kernel = torch.ones(3, 8, 1, 1)
    x, tx = (randn(2, 8, 4, 6).float().contiguous(memory_format=layout) for _ in range(2))

    def f(x, _=None):
        return nnf.conv2d(
            norm(x, w.to(x.dtype) if x.dtype.itemsize == 8 else w), kernel.to(x.dtype)
        )

    _, expected = torch.func.jvp(f, (x.double().contiguous(),), (tx.double().contiguous(),))
    with torch.autocast("cpu", torch.bfloat16):
        y, ty = jvp(f, (x.bfloat16(), x), (tx.bfloat16(), x))
        plain = f(x.bfloat16())
    torch.testing.assert_close(y, plain, rtol=0, atol=0)
    assert ty.dtype == y.dtype
    assert float((ty.double() - expected).norm() / expected.norm()) < 0.02
