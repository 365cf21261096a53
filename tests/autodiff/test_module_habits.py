# SPDX-License-Identifier: Apache-2.0
"""Modules and what wraps them, on dual numbers: checkpoints, norms, hooks, parametrizations."""

import math

import pytest
import torch
from habit_check import Calling, Habits
from torch import nn
from torch.nn import functional as nnf
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

habits = Habits()


SEQUENCE, IMAGE = (2, 5, 8), (3, 4, 5, 6)


@habits.module()
def checkpoint_reentrant():
    return Calling(
        lambda self, x: checkpoint(self.body, x, use_reentrant=True) + x,
        body=nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 4)),
    )


@habits.module()
def checkpoint_not_reentrant():
    return Calling(
        lambda self, x: checkpoint(self.body, x, use_reentrant=False) + x,
        body=nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 4)),
    )


@habits.module(SEQUENCE)
def multihead_attention():
    return Calling(
        lambda self, x: self.mha(x, x.flip(1), value=x, need_weights=False)[0],
        mha=nn.MultiheadAttention(8, 2, batch_first=True),
    )


@habits.module(SEQUENCE)
def multihead_attention_with_weights_in_eval():
    return Calling(lambda self, x: self.mha(x, x, x), mha=nn.MultiheadAttention(8, 2)).eval()


@habits.module(SEQUENCE)
def transformer_encoder_layer():
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)


@habits.module(SEQUENCE)
def transformer_encoder_in_eval():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


@habits.module(IMAGE)
def batch_norm_in_training():
    return nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3, momentum=None))


@habits.module(IMAGE)
def batch_norm_in_eval():
    return nn.BatchNorm2d(4).eval()


@habits.module(IMAGE)
def instance_norm_that_tracks():
    return nn.InstanceNorm2d(4, affine=True, track_running_stats=True)


@habits.module((2, 4, 6, 6))
def convolutional_block():
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.GroupNorm(2, 4),
        nn.LeakyReLU(0.2, inplace=True),
        nn.PixelUnshuffle(2),
        nn.ConvTranspose2d(16, 4, 2, stride=2),
        nn.Hardswish(inplace=True),
        nn.MaxPool2d(2),
        nn.ReflectionPad2d(1),
        nn.AdaptiveAvgPool2d(2),
    )


@habits.module((2, 5, 4))
def recurrent():
    return Calling(lambda self, x: self.gru(x)[0], gru=nn.GRU(4, 3, batch_first=True))


@habits.module()
def weight_norm():
    return parametrizations.weight_norm(nn.Linear(4, 3))


@habits.module()
def spectral_norm():
    return parametrizations.spectral_norm(nn.Linear(4, 3))


@habits.module()
def orthogonal():
    return parametrizations.orthogonal(nn.Linear(4, 4))


@habits.module()
def tensor_hook_on_the_hidden():
    def call(self, x):
        hidden = self.linear(x)
        hidden.register_hook(lambda grad: grad * 5)
        return hidden.sin()

    return Calling(call, linear=nn.Linear(4, 3))


@habits.module()
def module_hooks():
    linear = nn.Linear(4, 3)
    linear.register_forward_hook(lambda module, given, out: out * 2)
    linear.register_forward_pre_hook(lambda module, given: (given[0].sin(),))
    return linear


@habits.module((3,), (3, 4))
def buffer_cached_on_the_module():
    def call(self, t, x):
        if self.table is None:
            self.table = torch.linspace(0, 1, 4, dtype=t.dtype)
        assert type(self.table) is torch.Tensor
        return (t[:, None] * self.table).sin() * x

    return Calling(call, table=None)


@habits.module(expect="exact refused")
def buffer_written_in_forward():
    def call(self, x):
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.1)
        return x - self.mean

    made = Calling(call)
    made.register_buffer("mean", torch.ones(4))
    return made


@habits.module((2, 4))
def parameter_returned_unchanged():
    def call(self, x):
        (token,) = torch.broadcast_tensors(self.token)
        same = torch.atleast_1d(self.token).contiguous().to(x)
        assert same is self.token
        return x * token + self.token.view_as(self.token), self.token

    return Calling(call, token=nn.Parameter(torch.randn(4)))


@habits.module((2, 3, 4))
def learned_token_joined():
    def call(self, x):
        tokens = self.token.expand(x.shape[0], -1, -1)
        return torch.cat([tokens, x], dim=1) + nnf.pad(self.token, (0, 0, 0, 3))

    return Calling(call, token=nn.Parameter(torch.randn(1, 1, 4)))


@habits.module()
def functional_call():
    def call(self, x):
        doubled = {name: 2 * each for name, each in self.linear.named_parameters()}
        return torch.func.functional_call(self.linear, doubled, (x,))

    return Calling(call, linear=nn.Linear(4, 3))


@habits.module(expect="exact refused")
def scripted_function():
    def formula(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.7 * x)

    return Calling(lambda self, x: torch.jit.script(formula)(x.sin()))


@habits.module(expect="exact refused")
def compiled_block():
    torch._dynamo.reset()
    inner = nn.Sequential(nn.Linear(4, 4), nn.SiLU())
    compiled = torch.compile(inner, backend="eager")
    return Calling(lambda self, x: compiled(x) + x, inner=inner)


@habits.module((3,))
def time_embedding():
    def call(self, t):
        half = torch.exp(-math.log(100) * torch.arange(4, dtype=t.dtype) / 4)
        angles = t[:, None].float() * half[None].float()
        return self.mlp(
            torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.mlp[0].weight.dtype)
        )

    return Calling(call, mlp=nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3)))


@habits.module((3, 4), (3,))
def modulated_block():
    def call(self, x, t):
        shift, scale, gate = self.ada(nnf.silu(t[:, None])).chunk(3, dim=-1)
        hidden = nnf.layer_norm(x, (4,)) * (1 + scale) + shift
        return torch.addcmul(x, gate, self.mlp(hidden))

    return Calling(call, ada=nn.Linear(1, 12), mlp=nn.Linear(4, 4))


@habits.module(expect="exact refused")
def gradient_inside_the_network():
    def call(self, x):
        with torch.enable_grad():
            energy = self.mlp(x).pow(2).sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]

    return Calling(call, mlp=nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)))


@habits.module()
def parameter_made_in_forward():
    def call(self, x):
        return self.part(x) * torch.nn.Parameter(x, requires_grad=False)

    return Calling(call, part=nn.Linear(4, 4))


@pytest.mark.parametrize("name", habits)
@pytest.mark.filterwarnings("ignore")
def test_habit(name):
    habits.check(name)
