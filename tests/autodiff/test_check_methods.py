# SPDX-License-Identifier: Apache-2.0
"""What the check says of the other methods, and of networks that no method can train."""

import pytest
import torch
from test_check import Tower, point
from torch import nn
from torch.nn import functional as nnf

from scm_lightning.autodiff import TangentComputer
from scm_lightning.core import expand_time


def staircase(x):
    return (1e5 * x).round() / 1e5  # steps shorter than those of differences


def test_differences_of_what_is_not_smooth_are_refused():
    with pytest.raises(ValueError, match=r"not smooth along the path"):
        TangentComputer("finite_difference")(Stairs().train(), **point((8,)))


class Stairs(nn.Module):
    """A network of steps, which has no derivative worth the name."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, u, t, labels=None, guidance=None):
        return staircase(self.layer(u) + expand_time(t, u)) * self.layer.bias


@torch.library.custom_op("scm_check::untrainable", mutates_args=())
def untrainable(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


def test_a_network_that_cannot_be_trained_is_refused_as_such():
    with pytest.raises(ValueError, match=r"cannot be trained: .* its backward pass fails with"):
        TangentComputer()(Tower(untrainable).train(), **point((8,)))


def attend(x):
    """Torch's fused attention, which has no forward derivative."""
    heads = x.reshape(len(x), 1, 4, 2)
    return nnf.scaled_dot_product_attention(heads, heads, heads).reshape(x.shape)


COUNT = torch.zeros(())


def count(x):
    COUNT.add_(1)
    return x.sin()


@pytest.mark.parametrize("method", ["two_pass", "func"])
def test_what_forward_mode_does_not_take_is_said_in_one_line(method):
    with pytest.raises(
        ValueError, match=r"torch.func.jvp does not take it.*works with dual"
    ) as caught:
        TangentComputer(method)(Tower(count).train(), **point((8,)))
    assert "\n" not in str(caught.value)
