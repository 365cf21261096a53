# SPDX-License-Identifier: Apache-2.0
"""The derivative: against differences, both methods against each other, scales and masks."""

import pytest
import torch
from tiny import derive, rounding, wake

from scm_lightning.autodiff import TangentComputer
from scm_lightning.autodiff.checkpointing import outermost_blocks
from scm_lightning.core import expand_time
from scm_lightning.networks import MLP, DiT, UNet

SIGMA_DATA = 0.7
METHODS = ["dual", "func", "two_pass", "finite_difference"]
"""Methods that take any function; dual_checkpoint takes networks with blocks."""
SHAPE = (2, 4, 6)


def mlp(dropout):
    return MLP(SHAPE, model_channels=24, num_blocks=2, num_classes=3, guided=True, dropout=dropout)


def unet(dropout):
    return UNet(
        SHAPE,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attention_pixels=(6,),
        dropout=dropout,
        num_classes=3,
        guided=True,
    )


def dit(dropout):
    return DiT(
        SHAPE,
        model_channels=16,
        num_blocks=2,
        num_heads=2,
        num_classes=3,
        guided=True,
        dropout=dropout,
    )


def inputs(randn):
    t = torch.tensor([0.01, 0.3, 0.9, 1.3, 1.56], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1, 0])
    return {
        "x_t": SIGMA_DATA * randn(5, *SHAPE),
        "t": t,
        "dx_dt": SIGMA_DATA * randn(5, *SHAPE),
        "sigma_data": SIGMA_DATA,
        "labels": labels,
        "guidance": t + 1.0,
    }


def run(method, network, inputs):
    """F, derivative and the gradients of sum(F * weights), all from the same random state."""
    torch.manual_seed(7)
    network.zero_grad()
    F, J = derive(method, network, inputs)
    (F * torch.linspace(-1, 1, F.numel(), dtype=F.dtype).reshape(F.shape)).sum().backward()
    return [F, J, *(parameter.grad.clone() for parameter in network.parameters())]


@pytest.mark.parametrize(("build", "dropout"), [(mlp, 0.0), (mlp, 0.4), (dit, 0.4)])
def test_methods_agree_on_output_derivative_and_gradients(randn, build, dropout):
    """With dropout, labels and guidance, in float64; the U-Nets in the tests of the networks."""
    network, given = wake(build(dropout)).double().train(), inputs(randn)
    oracle = run("two_pass", network, given)
    for method in ("func", "dual", "dual_checkpoint"):
        for one, other in zip(run(method, network, given), oracle, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    F, J, *gradients = run("finite_difference", network, given)
    torch.testing.assert_close(J, oracle[1], rtol=1e-4, atol=1e-5)
    for one, other in zip([F, *gradients], [oracle[0], *oracle[2:]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("build", [mlp, unet, dit])
@pytest.mark.parametrize("method", METHODS)
def test_derivative_is_the_one_along_the_ode(randn, build, method):
    """cos sin dF/dt against central differences of the network."""
    network, given = wake(build(0.0)).double().eval(), inputs(randn)
    x_t, t, dx_dt, h = given["x_t"], given["t"], given["dx_dt"], 1e-5

    def F(h):
        u = (x_t + h * dx_dt) / SIGMA_DATA
        return network(u, t + h, given["labels"], given["guidance"])

    expected = expand_time(t.cos() * t.sin(), x_t) * (F(h) - F(-h)) / (2 * h)
    _, J = derive(method, network, given)
    tolerance = 1e-4 if method == "finite_difference" else 1e-6
    torch.testing.assert_close(J, expected, rtol=tolerance, atol=0.1 * tolerance)
    assert float(J.abs().max()) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_derivative_sees_the_dropout_mask_of_the_output(randn, method):
    """Where dropout zeroes the output, it zeroes the derivative."""
    given = inputs(randn)

    def network(u, t, labels, guidance):
        return torch.nn.functional.dropout(u * expand_time(t, u).cos(), p=0.5)

    torch.manual_seed(3)
    F, J = derive(method, network, given)
    assert torch.equal(F == 0, J == 0)
    assert 0.2 < float((F == 0).double().mean()) < 0.8


@pytest.mark.parametrize("method", METHODS)
def test_derivative_carries_no_graph_and_output_does(randn, method):
    F, J = derive(method, wake(mlp(0.0)).double(), inputs(randn))
    assert F.requires_grad
    assert not J.requires_grad


def test_both_prescriptions_of_the_input_tangent_agree(randn):
    """Tangents (c s dx, c s sigma_data) give sigma_data times ours, (c s dx / sigma_data, c s)."""
    network, given = wake(mlp(0.0)).double().eval(), inputs(randn)
    u, t = given["x_t"] / SIGMA_DATA, given["t"]
    cos_sin = t.cos() * t.sin()
    _, as_printed = torch.func.jvp(
        lambda u, t: network(u, t, given["labels"], given["guidance"]),
        (u, t),
        (expand_time(cos_sin, u) * given["dx_dt"], cos_sin * SIGMA_DATA),
    )
    _, J = derive("dual", network, given)
    torch.testing.assert_close(SIGMA_DATA * J, as_printed)


@pytest.mark.parametrize("build", [mlp, unet, dit])
@pytest.mark.parametrize("precision", ["autocast", "bfloat16 weights"])
def test_half_precision_keeps_time_and_results_in_float32(randn, build, precision):
    """The derivative stays as near to float64's as bfloat16 lets it: 3 to 9 %, by the depth."""
    network = wake(build(0.0)).double().eval()
    given = inputs(randn)
    _, expected = derive("dual", network, given)
    half = {
        name: value.float() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in given.items()
    }
    network = network.float() if precision == "autocast" else network.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        F, J = derive("dual", network, half)
        emb = network.conditioning(half["t"], half["labels"], half["guidance"])
    assert {F.dtype, J.dtype, emb.dtype} == {torch.float32}
    error = (J.double() - expected).norm() / expected.norm()
    assert 1e-5 < float(error) < rounding(network, torch.bfloat16)


def test_misfits_are_refused(randn):
    given = inputs(randn)
    with pytest.raises(
        ValueError, match="must be one of dual, dual_checkpoint, func, two_pass, finite_diff"
    ):
        TangentComputer("reverse")
    with pytest.raises(ValueError, match=r"must return the shape of its input, \(5, 2, 4, 6\)"):
        derive("dual", lambda u, t, labels, guidance: u[:, :1] * t.sum(), given)
    with pytest.raises(ValueError, match="velocity must have the shape of x_t"):
        derive("dual", mlp(0.0), {**given, "dx_dt": given["x_t"][:1]})


def test_checkpointing_keeps_the_inputs_of_blocks_alone(randn):
    """Fewer numbers saved for the backward pass; the blocks are themselves again afterwards."""
    network, given = wake(mlp(0.3)).double().train(), inputs(randn)
    saved = {}
    for method in ("dual", "dual_checkpoint"):
        kept = {}

        def keep(x, kept=kept):
            kept[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            derive(method, network, given)
        saved[method] = sum(kept.values()) - sum(p.numel() for p in network.parameters())
    assert saved["dual_checkpoint"] < 0.7 * saved["dual"]
    assert "forward" not in vars(network.blocks[0])


def test_checkpointing_needs_blocks(randn):
    with pytest.raises(ValueError, match="found none in Linear; keep the blocks in one"):
        derive("dual_checkpoint", torch.nn.Linear(3, 3).eval(), inputs(randn))


class Chained(torch.nn.Module):
    """Blocks in an nn.Sequential, between single layers; one twice, one in a list within."""

    def __init__(self):
        super().__init__()
        block = mlp_block()
        self.inner = torch.nn.Sequential(
            torch.nn.Linear(6, 6), block, torch.nn.SiLU(), block, mlp_block()
        )
        self.outer = torch.nn.ModuleList([torch.nn.ModuleList([mlp_block()]), mlp_block()])
        self.alone = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.SiLU())

    def forward(self, u, t, labels=None, guidance=None):
        h = self.alone(self.inner(u * expand_time(t, u)))
        return self.outer[1](self.outer[0][0](h))


def mlp_block():
    linear = torch.nn.Linear(6, 6)
    return torch.nn.Sequential(
        linear, torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(6, 6)
    )


def test_checkpointing_takes_blocks_of_chains_and_of_lists_in_lists(randn):
    """Single layers stay; value, derivative and gradients are those of `dual`."""
    network = Chained()
    inner, outer = network.inner, network.outer
    assert list(outermost_blocks(network)) == [inner[1], inner[4], outer[0][0], outer[1]]
    network, given = wake(network).double().train(), inputs(randn)
    expected = run("dual", network, given)
    for one, other in zip(run("dual_checkpoint", network, given), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert not any("forward" in vars(module) for module in network.modules())
