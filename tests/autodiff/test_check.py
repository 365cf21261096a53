# SPDX-License-Identifier: Apache-2.0
"""The check before the first step: planted faults are named, healthy networks are accepted."""

import copy

import numpy as np
import pytest
import torch
from foreign_adapter import built
from foreign_networks import NETWORKS
from torch import nn
from torch.nn import functional as nnf

from scm_lightning.autodiff import TangentComputer
from scm_lightning.autodiff.dual import rules
from scm_lightning.autodiff.dual.carriers import primal_of
from scm_lightning.core import expand_time
from scm_lightning.networks import MLP, DiT, EDM2UNet, UNet

SIGMA_DATA = 0.7


def point(shape, batch=6):
    """Arguments of a tangent computer. Batch 6, more than the check looks at."""
    generator = torch.Generator().manual_seed(2)
    return {
        "x_t": SIGMA_DATA * torch.randn(batch, *shape, generator=generator),
        "t": torch.linspace(0.1, 1.5, batch),
        "dx_dt": SIGMA_DATA * torch.randn(batch, *shape, generator=generator),
        "sigma_data": SIGMA_DATA,
    }


class Block(nn.Module):
    """x + W f(V x + time), with a function of the test's choice."""

    def __init__(self, f, width=8):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.f = f

    def forward(self, x, t):
        return x + self.outer(self.f(self.inner(x) + expand_time(t, x))) / 6


class Tower(nn.Module):
    """Forty blocks, of which the seventeenth has a function of its own; says zero when fresh."""

    def __init__(self, f):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(f if i == 17 else torch.tanh) for i in range(40))
        self.out = nn.Linear(8, 8)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, u, t, labels=None, guidance=None):
        x = u
        for block in self.blocks:
            x = block(x, t)
        return self.out(x)


def plant(monkeypatch, func, change):
    """Bend the rule of a function: `change` gets (value, tangent, arguments)."""
    entry = rules.RULES[func]

    def bent(called, *args, **kwargs):
        value, tangent = entry.rule(called, *args, **kwargs)
        return change(value, tangent, args)

    monkeypatch.setitem(rules.RULES, func, rules.Entry(bent, 1_000, None))


def drop(value, tangent, args):
    return value, torch.zeros_like(tangent)


def forget(value, tangent, args):
    return value, None


def cut(value, tangent, args):
    return value.detach(), tangent


def bend(value, tangent, args):
    return value * 1.01, tangent * 1.01


def keep_constant(value, tangent, args):
    return value, nnf.pad(primal_of(args[0]).tangent, (1, 1), value=0.5)


def swap(value, tangent, args):
    return value, tangent.flip(0)


def tenth(value, tangent, args):
    return value, 0.9 * tangent


def own_mask(value, tangent, args):
    return value, nnf.dropout(args[0].tangent, 0.3)


def padded(x):
    return nnf.pad(x, (1, 1), value=0.5)[..., :8]


class Halved(torch.autograd.Function):
    """A backward that plain training has too, and no fault of the derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 2


def by_numpy(x):
    return x * torch.from_numpy(np.cos(x.detach().numpy()))


FAULTS = {
    "a tangent dropped": (torch.erf, torch.erf, drop, "derivative of module blocks.17"),
    "a dual number taken for a constant": (torch.erf, torch.erf, forget, "blocks.17"),
    "a graph that is cut": (torch.erf, torch.erf, cut, r"blocks\.\d+\.inner.* no gradient"),
    "a value that is bent": (torch.erf, torch.erf, bend, "output of module blocks.17"),
    "a constant kept in the tangent": (padded, nnf.pad, keep_constant, "blocks.17"),
    "samples exchanged": (torch.sin, torch.sin, swap, "derivative of module blocks.17"),
    "a tenth lost": (torch.sin, torch.sin, tenth, "derivative of module blocks.17"),
    "another dropout mask": (lambda x: nnf.dropout(x, 0.3), nnf.dropout, own_mask, "blocks.17"),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_in_one_of_forty_blocks_is_named(monkeypatch, name, precision):
    f, func, change, message = FAULTS[name]
    plant(monkeypatch, func, change)
    network = Tower(f).train()
    if precision == "bfloat16" and name == "a value that is bent":
        pytest.skip("1 % is what bfloat16 does by itself")
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    with half, pytest.raises(ValueError, match=message) as caught:
        TangentComputer()(network, **point((8,)))
    assert "\n" not in str(caught.value)
    TangentComputer(check=False)(network, **point((8,)))


def test_a_fault_is_found_where_the_derivative_has_the_factor_zero(monkeypatch):
    """As in MeanFlow, of most samples: from t to t."""
    plant(monkeypatch, torch.erf, drop)
    with pytest.raises(ValueError, match=r"derivative of module blocks.17"):
        TangentComputer()(Tower(torch.erf).train(), **point((8,)), scale=torch.zeros(6))


def test_what_numpy_hides_is_seen_by_differences():
    """The value is a constant by its author's word, so that no method but differences is right."""
    with pytest.raises(ValueError, match=r"derivative of module blocks.17.* central differences"):
        TangentComputer()(Tower(by_numpy).train(), **point((8,)))


@torch.library.custom_op("scm_check::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


opaque.register_autograd(
    lambda ctx, gradient: gradient * ctx.saved_tensors[0].cos(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


@pytest.mark.parametrize("method", ["two_pass", "func"])
def test_what_forward_mode_loses_is_seen_by_differences(method):
    """A custom operation has tangent zero in torch.func.jvp, without a word."""
    with pytest.raises(ValueError, match=r"Tower by the tangent method .* central differences"):
        TangentComputer(method)(Tower(opaque).train(), **point((8,)))
    TangentComputer("finite_difference")(Tower(opaque).train(), **point((8,)))


def test_a_backward_of_its_own_is_no_fault():
    TangentComputer()(Tower(Halved.apply).train(), **point((8,)))


def test_a_network_in_eval_mode_or_without_gradients_is_not_checked(monkeypatch):
    plant(monkeypatch, torch.erf, drop)
    TangentComputer()(Tower(torch.erf).eval(), **point((8,)))
    with torch.no_grad():
        TangentComputer()(Tower(torch.erf).train(), **point((8,)))


class Moody(nn.Module):
    """Has buffers, dropout and gradients from before; draws from every source of numbers."""

    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer, self.out = norm, nn.Linear(8, 8), nn.Linear(8, 8)
        nn.init.zeros_(self.out.weight)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, u, t, labels=None, guidance=None):
        h = nnf.dropout(self.norm(self.layer(u)), 0.2) * expand_time(t, u)
        if isinstance(self.norm, nn.BatchNorm1d):
            self.calls += 1
            h = h + float(np.random.rand())
        return self.out(h)


@pytest.mark.parametrize("method", ["dual", "two_pass", "func", "finite_difference"])
def test_the_check_leaves_everything_as_it_was(method):
    """Weights, buffers, gradients and random numbers, to the bit."""
    given, states = point((8,)), []
    # What every pass changes, dual numbers alone see once.
    norm = nn.BatchNorm1d(8) if method == "dual" else nn.LayerNorm(8)
    for check in (True, False):
        network = Moody(copy.deepcopy(norm)).train()
        for x in network.parameters():
            x.grad = torch.full_like(x, 0.25)
        torch.manual_seed(3)
        np.random.seed(3)
        F, derivative = TangentComputer(method, check=check)(network, **given)
        state = [*network.state_dict().values(), *(x.grad for x in network.parameters())]
        state += [F.detach(), derivative, torch.get_rng_state()]
        states.append([*map(torch.clone, state), torch.tensor(np.random.rand())])
    for one, other in zip(*states, strict=True):
        assert torch.equal(one, other)


OURS = {
    "MLP": lambda: MLP((2, 4, 6), 16, 1, num_classes=3, dropout=0.2),
    "UNet": lambda: UNet((2, 4, 6), model_channels=8, channel_mult=(1, 2), num_blocks=1),
    "DiT": lambda: DiT((2, 4, 6), 2, 16, 2, 2, num_classes=3),
    "EDM2": lambda: EDM2UNet((2, 4, 4), 8, (1, 2), 1, attention_pixels=(), channels_per_head=4),
}


@pytest.mark.parametrize("method", ["dual", "dual_checkpoint", "two_pass", "finite_difference"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OURS)
def test_our_networks_are_accepted(name, precision, method):
    """Fresh, so that their output is zero."""
    torch.manual_seed(0)
    network = OURS[name]().train()
    given = point(network.data_shape if hasattr(network, "data_shape") else (2, 4, 6))
    if name == "EDM2":
        given = point((2, 4, 4))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        TangentComputer(method)(network, **given)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        "UNet2DModel",
        "UNet2DConditionModel",
        "DiTTransformer2DModel",
        "SanaTransformer2DModel",
        "PixArtTransformer2DModel",
        "SD3Transformer2DModel",
        "FluxTransformer2DModel",
        "WanTransformer3DModel",
        "nn.TransformerEncoder",
        "nn.MultiheadAttention",
        "BatchNorm, train mode",
    ],
)
def test_networks_of_other_makers_are_accepted(name):
    network = NETWORKS[name]
    module = built(network).float().train()
    TangentComputer()(module, **point(network.shape, batch=3))
