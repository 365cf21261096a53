# SPDX-License-Identifier: Apache-2.0
"""Differences in every precision, of networks that see the time in radians or in thousandths."""

import copy

import pytest
import torch
from test_computer import SIGMA_DATA, dit, inputs, mlp, unet
from test_repaired_jvp import edm2, single
from tiny import derive, wake


class Timed(torch.nn.Module):
    """A network that takes a multiple of the time, as those of other projects take 1000 t."""

    def __init__(self, inner, unit):
        super().__init__()
        self.inner = inner
        self.unit = unit

    def forward(self, u, t, labels, guidance):
        return self.inner(u, self.unit * t, labels, guidance)


@pytest.mark.parametrize(
    ("build", "unit"),
    [*((build, 1.0) for build in (mlp, unet, dit, edm2)), (mlp, 1000.0), (dit, 1000.0)],
)
def test_differences_leave_autocast_and_half_weights(randn, build, unit):
    """Below 8e-3 of float64's derivative, 2e-2 with steep times; F as the run computes it."""
    network, given = Timed(wake(build(0.3)).double().train(), unit), inputs(randn)
    limit = 8e-3 if unit == 1.0 else 2e-2

    def derivative(method, network, given):
        torch.manual_seed(5)
        return derive(method, network, given)

    references = {}  # autocast and float32 have the same weights and inputs
    for kind in ("64", "64, times 32", "32", "bf16 autocast", "fp16 autocast", "bf16 weights"):
        of_kind = copy.deepcopy(network).to(torch.float64 if "64" in kind else torch.float32)
        of_kind = of_kind.bfloat16() if "weights" in kind else of_kind
        here = given if "64" in kind else single(given)
        here = {**here, "t": here["t"].float()} if "times" in kind else here
        half = torch.float16 if "fp16" in kind else torch.bfloat16
        before = {name: x.clone() for name, x in of_kind.state_dict().items()}
        with torch.autocast("cpu", half, enabled="autocast" in kind):
            F, J = derivative("finite_difference", of_kind, here)
            torch.manual_seed(5)
            plain = of_kind(here["x_t"] / SIGMA_DATA, here["t"], here["labels"], here["guidance"])
        torch.testing.assert_close(F, plain.to(F.dtype), rtol=0, atol=0)
        F.square().mean().backward()
        for name, weight in of_kind.state_dict().items():
            torch.testing.assert_close(weight, before[name], rtol=0, atol=0)
        exact = "32" if "autocast" in kind else kind
        if exact not in references:
            wide = {
                k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
                for k, v in here.items()
            }
            references[exact] = derivative("two_pass", copy.deepcopy(of_kind).double(), wide)[1]
        expected = references[exact]
        error = float((J.double() - expected).norm() / expected.norm())
        assert error < (1e-7 if "64" in kind and unit == 1.0 else limit), kind
