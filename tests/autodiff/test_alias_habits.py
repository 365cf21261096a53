# SPDX-License-Identifier: Apache-2.0
"""In-place code as people write it, on dual numbers: buffers, views, aliases."""

import pytest
import torch
from habit_check import Habits

habits = Habits()


@habits.function()
def buffer_filled_by_slices(x):
    out = torch.zeros(3, 8, dtype=x.dtype)
    out[:, :4] = x.sin()
    out[:, 6:] = x[:, :2]
    return out


@habits.function()
def buffer_filled_by_a_mask(x):
    mask = torch.arange(12).reshape(3, 4) % 3 == 0
    out = torch.ones(3, 4, dtype=x.dtype)
    out[mask] = x.cos()[mask]
    return out * x


@habits.function((1, 2, 6, 6))
def buffer_filled_by_windows(x):
    out = torch.zeros(1, 2, 6, 6, dtype=x.dtype)
    count = torch.zeros(6, 6, dtype=x.dtype)
    for i in range(0, 4, 2):
        out[:, :, i : i + 4, i : i + 4] += x[:, :, i : i + 4, i : i + 4].exp()
        count[i : i + 4, i : i + 4] += 1
    return out / count.clamp(min=1)


@habits.function()
def buffer_seen_through_views_made_before(x):
    buffer = torch.zeros(3, 8, dtype=x.dtype)
    left, middle, turned = buffer[:, :4], buffer[:, 2:6], buffer.t()
    left.copy_(x.sin())
    return buffer, middle * 2, turned.exp(), left


@habits.function()
def sibling_view_written_twice(x):
    buffer = torch.zeros(3, 8, dtype=x.dtype)
    middle = buffer.view(-1)[2:9]
    buffer[:, :4] = x
    buffer.mul_(2.0)
    buffer[0] = 0
    return middle.sin()


@habits.function()
def alias_of_a_plain_buffer(x):
    buffer = torch.ones(3, 4, dtype=x.dtype)
    same = buffer
    buffer += x
    return same * buffer


@habits.function((3, 4), (3, 4))
def aliased_addition_in_place(h, e):
    skip = h
    h += e
    return h * 2 + skip


@habits.function()
def silu_in_place_with_a_skip(x):
    return torch.nn.SiLU(inplace=True)(x) + x


@habits.function()
def view_before_and_after_in_place(x):
    row, half = x[1], x.view(2, 6)
    x.mul_(3.0).add_(1.0)
    row.exp_()
    return x, row, half


@habits.function()
def unsqueezed_then_written(x):
    wide = x[:, None].expand(3, 2, 4).clone()
    wide[:, 1] *= x
    wide.transpose(0, 1)[0].clamp_(min=0.1)
    return wide


@habits.function((3, 4), (2, 4))
def index_put_scatter_and_masked_fill(x, y):
    out = x * 1
    out.index_add_(0, torch.tensor([0, 2]), y)
    out.scatter_(1, torch.tensor([[0, 1]]), y[:1, :2])
    out.masked_fill_(torch.arange(4) == 3, 0.5)
    out[torch.tensor([1]), torch.tensor([2])] = y[0, 0]
    return out


@habits.function()
def rows_set_to_constants(x):
    x[:, 0] = 0
    x[1].fill_(2.0)
    x[2, 1:].zero_()
    return x.cumsum(0)


@habits.function()
def data_attribute(x):
    return x.data.sin() * x


@habits.function(expect="exact refused")
def assignment_to_data(x):
    x.data = x.data * 2
    return x.sin()


@habits.function()
def detached(x):
    return x.detach() * x


@habits.function()
def chunks_written_in_place(x):
    a, b = (x * 1).chunk(2, dim=1)
    joined = torch.cat([a, b], 1)
    joined[:, ::2].neg_()
    return joined.roll(1, 0)


@habits.function((2, 8, 3))
def strided_and_unfolded(x):
    windows = x.unfold(1, 4, 2)
    return (
        windows.sum(-1),
        x.as_strided((2, 3), (24, 1)).exp(),
        x.permute(2, 0, 1).contiguous().view(3, -1),
    )


@habits.function((3, 4), (1, 4))
def results_of_broadcasts_seen_and_written(x, row):
    """A tangent that is left smaller, or expanded, must not show through."""
    sums = torch.ones(3, 4, dtype=x.dtype) + row
    flat, wide = sums.view(-1) * 2, torch.zeros(3, 4, dtype=x.dtype).add(row)
    wide[0] *= 2
    wide.view(-1)[5:7].mul_(3.0)
    return (
        flat,
        wide,
        (row + row.sum()).view(4),
        (x.t() + 1).t().view(2, 6),
        x.mean().expand(2, 2) + 1,
    )


@habits.function((3, 4), (3, 4))
def written_by_itself_and_by_others(x, y):
    x += x
    y *= x
    x[:, 1:] = y[:, :-1]
    x.copy_(x.flip(0))
    x.add_(y, alpha=0.5).sub_(1).div_(y.exp())
    return x, y


@habits.function((3, 4), (3, 4))
def swapped_and_reset(x, y):
    x, y = y.clone(), x
    x.zero_()
    y.copy_(torch.ones(4))
    return x, y, x + y


@pytest.mark.parametrize("name", habits)
@pytest.mark.filterwarnings("ignore")
def test_habit(name):
    habits.check(name)
