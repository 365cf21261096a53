# SPDX-License-Identifier: Apache-2.0
"""The check on networks that change or hold more than weights and buffers: nothing is touched."""

import functools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as nnf

from scm_lightning.autodiff import TangentComputer
from scm_lightning.autodiff.dual import DualNumbers, rules

SETUPS, BODIES = {}, {}


def habit(**attributes):
    """Register a forward, and what makes the attributes that it uses."""

    def register(f):
        SETUPS[f.__name__], BODIES[f.__name__] = attributes, f
        return f

    return register


@habit(steps=lambda self: 0)
def a_counter(self, h):
    self.steps += 1
    return h * (1 + 0.1 * self.steps)


@habit(ready=lambda self: False, scale=lambda self: nn.Parameter(torch.zeros(8)))
def a_flag_of_weights_set_by_data(self, h):
    if not self.ready:
        self.scale.data.fill_(0.5)
        self.ready = True
    return h * self.scale.exp()


@habit(table=lambda self: None)
def an_attribute_filled_at_first(self, h):
    if self.table is None:
        self.table = torch.linspace(0, 1, h.numel()).to(h).reshape(h.shape)
    return h + self.table


@habit()
def a_buffer_registered_at_first(self, h):
    if not hasattr(self, "table"):
        self.register_buffer("table", torch.ones(h.shape).to(h), persistent=False)
    return h + self.table


@habit(seen=lambda self: [])
def a_list_that_grows(self, h):
    self.seen.append(0)
    return h * len(self.seen)


@habit(seen=lambda self: {})
def a_dictionary_that_grows(self, h):
    self.seen[len(self.seen)] = 0
    return h * len(self.seen)


@habit(memory=lambda self: torch.zeros(8))
def a_tensor_written_in_place(self, h):
    self.memory += 1
    return h + self.memory.to(h)


@habit(numbers=lambda self: torch.Generator().manual_seed(0))
def a_generator_of_torch(self, h):
    return h * torch.rand(h.shape, generator=self.numbers).to(h)


@habit(numbers=lambda self: random.Random(0))
def a_generator_of_python(self, h):
    return h * self.numbers.random()


@habit(numbers=lambda self: np.random.default_rng(0))
def a_generator_of_numpy(self, h):
    return h * float(self.numbers.random())


@habit(last=lambda self: functools.partial(nnf.linear, weight=self.outer.weight))
def a_weight_held_by_a_function(self, h):
    return self.last(h)


@habit(weights=lambda self: [self.outer.weight])
def a_weight_held_in_a_list(self, h):
    return h @ self.weights[0]


@habit(part=lambda self: torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.SiLU())))
def a_scripted_part(self, h):
    return self.part(h)


@habit(part=lambda self: nn.LSTM(8, 8, batch_first=True))
def a_recurrent_part(self, h):
    """In float32, where torch's kernel has no forward derivative."""
    return self.part(torch.stack([h, 2 * h], 1))[0][:, -1]


class Net(nn.Module):
    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.body = nn.Linear(8, 8), nn.Linear(8, 8), BODIES[name]
        self.register_buffer("graph", torch.eye(8).to_sparse())
        for key, make in SETUPS[name].items():
            setattr(self, key, make(self))

    def forward(self, u, t, labels=None, guidance=None):
        h = torch.tanh(self.inner(u) + t.to(u)[:, None])
        return self.outer(self.body(self, (self.graph.to(h) @ h.T).T))


def given():
    generator = torch.Generator().manual_seed(2)
    x, v = torch.randn(2, 6, 8, generator=generator)
    return {"x_t": x, "t": torch.linspace(0.2, 1.4, 6), "dx_dt": v, "sigma_data": 1.0}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.filterwarnings("ignore")
def test_the_step_after_the_check_is_as_without(name):
    found = []
    for check in (True, False):
        network = Net(name).train()
        for x in network.parameters():
            x.grad = torch.full_like(x, 0.25)
        F, derivative = TangentComputer(check=check)(network, **given())
        gradients = [x.grad.clone() for x in network.parameters()]
        found.append([F.detach(), derivative, *network.parameters(), *gradients])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_fault_in_autocast_alone_is_found(monkeypatch):
    """Float64 does not see it, and half precision explains as much; torch's own error does not."""
    own = rules.RULES[torch.erf]

    def bent(func, x):
        value, tangent = own.rule(func, x)
        return value, tangent * (0.75 if torch.is_autocast_enabled("cpu") else 1)

    monkeypatch.setitem(rules.RULES, torch.erf, rules.Entry(bent, 1, None))
    monkeypatch.setitem(BODIES, "erf", lambda self, h: torch.erf(h))
    monkeypatch.setitem(SETUPS, "erf", {})
    network = Net("erf")
    network.graph = torch.eye(8)  # torch.func.jvp takes no sparse one
    half = torch.autocast("cpu", torch.bfloat16)
    with half, pytest.raises(ValueError, match=r"in this precision .* module outer"):
        TangentComputer()(network.train(), **given())


def test_a_gradient_scaled_in_half_precision_is_found(monkeypatch):
    """Rounding explains 5 percent of a gradient that is not small among the others."""
    own = rules.RULES[torch.erf]

    def bent(func, x):
        value, tangent = own.rule(func, x)
        return 0.6 * value + 0.4 * value.detach(), tangent

    monkeypatch.setitem(rules.RULES, torch.erf, rules.Entry(bent, 1, None))
    monkeypatch.setitem(BODIES, "erf", lambda self, h: torch.erf(h))
    monkeypatch.setitem(SETUPS, "erf", {})
    half = torch.autocast("cpu", torch.bfloat16)
    with half, pytest.raises(ValueError, match=r"gradient of the parameter inner"):
        TangentComputer()(Net("erf").train(), **given())


def test_a_norm_without_eps_in_half_precision():
    """Its eps is that of float32."""
    x = (0.01 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))).bfloat16()
    with DualNumbers() as level:
        _, tangent = level.part(nnf.rms_norm(level.join(x.clone(), torch.ones_like(x)), (8,)))
    _, wanted = torch.func.jvp(
        lambda x: nnf.rms_norm(x, (8,), eps=torch.finfo(torch.float32).eps),
        (x.double(),),
        (torch.ones_like(x).double(),),
    )
    assert float((tangent - wanted).norm() / wanted.norm()) < 0.05


class Named(nn.Module):
    """A block that is called with a tangent by name."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Bilinear(8, 1, 8)])

    def forward(self, u, t, labels=None, guidance=None):
        return u + self.blocks[0](u, input2=t[:, None])


def test_checkpointed_blocks_take_arguments_by_name():
    torch.manual_seed(0)
    network = Named().train()
    plain, checkpointed = (
        TangentComputer(method)(network, **given()) for method in ("dual", "dual_checkpoint")
    )
    for one, other in zip(plain, checkpointed, strict=True):
        assert torch.equal(one, other)
