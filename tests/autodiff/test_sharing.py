# SPDX-License-Identifier: Apache-2.0
"""Two tangents share memory if and only if their values do, whatever their layouts.

After an operation one of argument and result is written into, and the other read: where value and
tangent do not agree on who shares with whom, the derivative is wrong.
"""

import pytest
import torch
from torch.nn import functional as nnf

from scm_lightning.autodiff.dual import DualNumbers, TangentError

VIEWS = {
    "getitem": lambda x: x[1:, :, None, 1],
    "ellipsis": lambda x: x[...],
    "fancy": lambda x: x[[0, 1]],
    "mask": lambda x: x[x.detach() > 0],
    "view": lambda x: x.view(x.shape[0], -1, x.shape[-1]),
    "view_as": lambda x: x.view_as(x),
    "reshape": lambda x: x.reshape(-1),
    "reshape, split": lambda x: x.reshape(2, -1, 2),
    "reshape_as": lambda x: x.reshape_as(torch.zeros(2, 12)),
    "flatten": lambda x: x.flatten(1),
    "ravel": lambda x: x.ravel(),
    "contiguous": lambda x: x.contiguous(),
    "contiguous, channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "clone": lambda x: x.clone(),
    "to": lambda x: x.to(torch.float64),
    "to, copied": lambda x: x.to(torch.float64, copy=True),
    "type_as": lambda x: x.type_as(x),
    "double": lambda x: x.double(),
    "positive": lambda x: +x,
    "expand": lambda x: x[None].expand(2, *x.shape)[1],
    "expand_as": lambda x: x.expand_as(x),
    "broadcast_to": lambda x: torch.broadcast_to(x, x.shape),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, torch.zeros(1))[0],
    "atleast_3d": lambda x: torch.atleast_3d(x),
    "meshgrid": lambda x: torch.meshgrid(x[0, :, 0, 0], x[:, 0, 0, 0], indexing="ij")[0][:, 0],
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "permute and reshape": lambda x: x.permute(0, 2, 3, 1).reshape(2, -1),
    "permute and contiguous": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "movedim": lambda x: x.movedim(1, 3),
    "transpose": lambda x: x.transpose(1, 2),
    "mT": lambda x: x.mT,
    "t": lambda x: x[0, :, :, 0].t(),
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(0),
    "unflatten": lambda x: x.unflatten(1, (3, 1)),
    "select": lambda x: x.select(1, 2),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "narrow_copy": lambda x: x.narrow_copy(1, 1, 2),
    "index_select": lambda x: x.index_select(0, torch.tensor([0, 1])),
    "diagonal": lambda x: x.diagonal(dim1=2, dim2=3),
    "diag": lambda x: torch.diag(x[0, 0]),
    "diag_embed": lambda x: torch.diag_embed(x),
    "unbind": lambda x: x.unbind(1)[2],
    "chunk": lambda x: x.chunk(2, dim=2)[1],
    "split": lambda x: x.split(2, dim=1)[0],
    "tensor_split": lambda x: x.tensor_split(2, dim=1)[1],
    "hsplit": lambda x: torch.hsplit(x, 3)[1],
    "unfold": lambda x: x.unfold(2, 1, 1),
    "as_strided": lambda x: x.flatten().as_strided((2, 3), (12, 1)),
    "einsum": lambda x: torch.einsum("abcd->acbd", x),
    "einsum, diagonal": lambda x: torch.einsum("abcc->abc", x),
    "einsum, a sum": lambda x: torch.einsum("abcd->ab", x),
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "rot90": lambda x: torch.rot90(x, 0),
    "tile": lambda x: torch.tile(x, (1,)),
    "repeat": lambda x: x.repeat(1, 1, 1, 1),
    "cat of one": lambda x: torch.cat([x]),
    "sum of no axis": lambda x: x.sum(()),
    "sum of a short axis": lambda x: x[:, :1].sum(1),
    "pad by nothing": lambda x: nnf.pad(x, (0, 0)),
    "pad by less": lambda x: nnf.pad(x, (-1, 0)),
    "dropout, off": lambda x: nnf.dropout(x, 0.5, training=False),
    "dropout, of nothing": lambda x: nnf.dropout(x, 0.0),
    "interpolate to the same": lambda x: nnf.interpolate(x, size=x.shape[2:]),
    "pool to the same": lambda x: nnf.adaptive_avg_pool2d(x, x.shape[2:]),
    "pixel_shuffle by one": lambda x: nnf.pixel_shuffle(x, 1),
    "channel_shuffle": lambda x: nnf.channel_shuffle(x, 3),
    "add": lambda x: x + 0,
    "sub from": lambda x: 0.0 - x,
    "add of a constant row": lambda x: torch.ones(1, dtype=x.dtype) + x,
    "masked_fill": lambda x: x.masked_fill(torch.tensor(False), 0.0),
    "where": lambda x: torch.where(torch.tensor(True), x, x),
    "softplus": lambda x: nnf.softplus(x),
    "tril": lambda x: x.tril(10),
    "cumsum": lambda x: x[:1].cumsum(0),
    "real": lambda x: torch.view_as_complex(x).real,
    "imaginary": lambda x: torch.view_as_complex(x).conj().imag,
    "conjugate": lambda x: torch.view_as_real((torch.view_as_complex(x).conj() + 0).resolve_conj()),
    "resolved": lambda x: x.resolve_conj().resolve_neg(),
    "lift_fresh": lambda x: torch.ops.aten.alias(x),
    "nan_to_num": lambda x: x.nan_to_num(),
    "stacked": lambda x: torch.stack([x])[0],
    "adjoint": lambda x: x.adjoint(),
    "identity": lambda x: torch.nn.Identity()(x),
    "atleast_1d": lambda x: torch.atleast_1d(x),
    "block_diag": lambda x: torch.block_diag(x[0, 0]),
    "take": lambda x: x.take(torch.arange(5)),
}
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "turned": lambda x: x.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3),
    "part": lambda x: torch.cat([x, x], 2)[:, :, 1:3],
}


def written_result(view, x):
    out = view(x)
    out.mul_(torch.linspace(1, 2, out.numel(), dtype=out.dtype).reshape(out.shape))
    return x * 1, out * 1


def written_argument(view, x):
    out = view(x)
    x.mul_(torch.linspace(1, 2, x.numel(), dtype=x.dtype).reshape(x.shape))
    return x * 1, out * 1


def written_sibling(view, x):
    one, other = view(x), view(x)
    one.exp_()
    return x * 1, one * 1, other * 1


WRITES = {f.__name__: f for f in (written_result, written_argument, written_sibling)}
ORDERS = {
    "as the value": lambda value, tangent: torch.empty_like(value).copy_(tangent),
    "contiguous": lambda value, tangent: tangent.contiguous(),
    "reversed": lambda value, tangent: tangent.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "broadcast": lambda value, tangent: tangent[:1, :1].expand(value.shape),
}


def agree(view, write, layout, order, randn):
    start = layout(randn(2, 3, 2, 2))
    tangent = order(start, randn(2, 3, 2, 2))

    def copied(x):  # a tangent that lies otherwise, on a value of this layout
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)

    try:
        plain = write(view, copied(start))
    except RuntimeError:
        return  # torch does not take this view, or this write
    try:
        _, tangents = torch.func.jvp(lambda x: write(view, copied(x)), (start,), (tangent,))
    except RuntimeError:
        return
    try:
        with DualNumbers() as level:
            x = level.mark(copied(start), tangent.clone(memory_format=torch.preserve_format))
            parts = [level.part(out) for out in write(view, x)]
    except TangentError:
        return
    for (value, found), wanted, t_wanted in zip(parts, plain, tangents, strict=True):
        torch.testing.assert_close(value, wanted)
        torch.testing.assert_close(torch.zeros_like(wanted) if found is None else found, t_wanted)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.filterwarnings("ignore")
def test_tangents_share_memory_as_their_values_do(randn, view, write):
    for layout in LAYOUTS.values():
        for order in ORDERS.values():
            agree(VIEWS[view], WRITES[write], layout, order, randn)
