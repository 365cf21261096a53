# SPDX-License-Identifier: Apache-2.0
"""One verdict for a network and a tangent method, against a plain step and an independent tangent.

    F           equals the plain forward's, from the same random state
    gradients   equal the plain step's, with the same cotangent; none is missing
    dF          equals torch's forward mode; where that raises, differences extrapolated to h = 0 in
                pure float64, and the derivative of the gradient (J v = d/dw of w^T J v) in others
    state       weights, buffers and the random state are those after a plain forward, and what is
                a Parameter or a Tensor still is

Errors are relative to the largest element. Their bound is 10 eps sqrt(depth): eps of the narrowest
type that anything made from u and t has inside the network (diffusers embeds time in float32),
depth the number of its layers. A network without a cast is thus held to about 1e-14 in float64.
Only the dF of finite_difference is held to what it promises, 1e-3.
"""

from contextlib import nullcontext
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from foreign_adapter import B, Network, built
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from scm_lightning.autodiff import TangentComputer

SIGMA_DATA = 0.7
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.float32}


class Point(NamedTuple):
    """Inputs of a network, their tangents and the cotangent of its output, all (B, ...) or (B,)."""

    u: Tensor
    t: Tensor
    tu: Tensor
    tt: Tensor
    cotangent: Tensor


class Plain(NamedTuple):
    """What a plain step leaves behind."""

    F: Tensor
    gradients: dict[str, Tensor | None]
    state: dict[str, Tensor]
    random_state: Tensor
    kinds: dict[str, tuple[type, list[str]]]


class Tangent(NamedTuple):
    """The derivative to compare with, how it was found and how exact it is."""

    dF: Tensor  # noqa: N815
    source: str
    error: float


class Verdict(NamedTuple):
    """A row of the table. Errors are None where the method gave no answer.

    Attributes:
        answer: "exact", "refused" (a ValueError that names the module), "raises" (anything else),
            or "wrong" followed by what is.
        line: of the refusal or the traceback, or what is wrong with the state.
    """

    answer: str
    line: str
    bound: float
    F: float | None = None
    dF: float | None = None  # noqa: N815
    gradients: float | None = None
    source: str = ""


def autocast(mode: str):
    return torch.autocast("cpu", torch.bfloat16) if mode == "bf16" else nullcontext()


@cache
def point(shape: tuple[int, ...], mode: str) -> Point:
    generator = torch.Generator().manual_seed(1)

    def randn():
        return torch.randn(B, *shape, generator=generator, dtype=torch.float64).to(DTYPES[mode])

    t = torch.tensor([0.2, 0.8, 1.4], dtype=DTYPES[mode])
    scale = t.cos() * t.sin()
    tu = scale.reshape(B, *[1] * len(shape)) * randn()
    return Point(randn(), t, tu, scale, randn())


def fresh(network: Network, mode: str) -> nn.Module:
    """Build it anew, and start the random numbers of its dropout."""
    module = built(network)
    # .to(dtype) would take the imaginary part from complex buffers.
    module = module.double() if DTYPES[mode] is torch.float64 else module.float()
    torch.manual_seed(2)
    return module


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@cache
def plain_step(network: Network, mode: str) -> Plain:
    module, at = fresh(network, mode), point(network.shape, mode)
    with autocast(mode):
        F = module(at.u, at.t)
    state, random_state = state_of(module), torch.get_rng_state()
    (F * at.cotangent).sum().backward()
    return Plain(F.detach(), gradients_of(module), state, random_state, kinds_of(module))


def gradients_of(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: weight.grad for name, weight in module.named_parameters()}


class _Casts(TorchFunctionMode):
    """Collects the floating-point types of all that depends on what requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point() and out.requires_grad:
            self.found.add(out.dtype)
        return out


@cache
def bound(network: Network, mode: str) -> float:
    module, at = fresh(network, mode).requires_grad_(False), point(network.shape, mode)
    casts = _Casts()
    with autocast(mode), casts:
        module(at.u.clone().requires_grad_(), at.t.clone().requires_grad_())
    casts.found.add(at.u.dtype)
    depth = sum(not list(each.children()) for each in module.modules())
    return 10 * max(torch.finfo(each).eps for each in casts.found) * depth**0.5


def relative(a: Tensor, b: Tensor, floor: float = 0.0) -> float:
    """Largest difference over the largest element of b, or over `floor` if that is larger."""
    difference = (a.double() - b.double()).abs().max()
    return float(difference / b.double().abs().max().clamp(min=max(floor, 1e-300)))


def by_forward_mode(network: Network, mode: str) -> tuple[Tensor, Tensor, float]:
    module, at = fresh(network, mode).requires_grad_(False), point(network.shape, mode)
    with autocast(mode), sdpa_kernel(SDPBackend.MATH):
        return *torch.func.jvp(lambda u, t: module(u, t), at[:2], at[2:4]), 0.0


def by_gradient_of_gradient(network: Network, mode: str) -> tuple[Tensor, Tensor, float]:
    module, at = fresh(network, mode).requires_grad_(False), point(network.shape, mode)
    inputs = (at.u.clone().requires_grad_(), at.t.clone().requires_grad_())
    with autocast(mode), sdpa_kernel(SDPBackend.MATH):
        F = module(*inputs)
    w = torch.zeros_like(F, requires_grad=True)
    pulled = torch.autograd.grad(F, inputs, w, create_graph=True)
    along = sum((a * b).sum() for a, b in zip(pulled, at[2:4], strict=True))
    return F.detach(), torch.autograd.grad(along, w)[0], 0.0


def by_differences(network: Network, mode: str) -> tuple[Tensor, Tensor, float]:
    module, at = fresh(network, mode), point(network.shape, mode)
    start = state_of(module)

    def value(h):
        module.load_state_dict(start)
        torch.manual_seed(2)
        with torch.no_grad(), autocast(mode):
            return module(at.u + h * at.tu, at.t + h * at.tt)

    def central(h):
        return (value(h) - value(-h)) / (2 * h)

    h = 2.0**-4
    table = [central(h / 2**k) for k in range(5)]
    for power in (4, 16, 64, 256):  # Richardson: each pass removes the next even power of h
        before, table = (
            table,
            [(power * fine - coarse) / (power - 1) for coarse, fine in pairwise(table)],
        )
    F, dF = value(0.0), table[0]
    rounding = bound(network, mode) * float(F.abs().max() / dF.abs().max()) * 2**4 / h
    return F, dF, relative(before[-1], dF) + rounding


@cache
def reference(network: Network, mode: str) -> Tangent:
    """Take the first that runs, with the masks of the plain step."""
    F, reasons = plain_step(network, mode).F, []
    sources = [("jvp", by_forward_mode), ("double gradient", by_gradient_of_gradient)]
    # A custom backward need not be the derivative, so differences come first where they are exact.
    sources.insert(1 if bound(network, mode) < 1e-12 else 2, ("differences", by_differences))
    for source, find in sources:
        try:
            value, dF, error = find(network, mode)
        except (RuntimeError, NotImplementedError, ValueError, TypeError) as raised:
            reasons.append(f"{source}: {raised}")
            continue
        if relative(value, F) > bound(network, mode):
            reasons.append(f"{source}: other masks, F differs by {relative(value, F):.1e}")
        elif error > 1e-9:
            reasons.append(f"{source}: a kink, differences differ by {error:.1e}")
        else:
            return Tangent(dF.detach(), source, error)
    raise AssertionError("no reference: " + "; ".join(reasons))


def state_error(module: nn.Module, state, random_state, plain: Plain, most: float) -> str:
    """Say what a forward pass left behind other than a plain one, or nothing."""
    if kinds_of(module) != plain.kinds:
        return "types or attributes of parameters or buffers changed"
    for name, value in state.items():
        if relative(value, plain.state[name]) > most:
            return f"{name} was left by {relative(value, plain.state[name]):.0e} elsewhere"
    if not torch.equal(random_state, plain.random_state):
        return "the random state was left elsewhere"
    return ""


def kinds_of(module: nn.Module) -> dict[str, tuple[type, list[str]]]:
    """Types and own attributes of parameters and buffers, but for marks of torch.compile."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {
        name: (type(each), sorted(key for key in vars(each) if "dynamo" not in key))
        for name, each in tensors
    }


def gradient_error(found: dict[str, Tensor | None], plain: dict[str, Tensor | None]) -> float:
    """Largest relative error of a weight's gradient; infinite where one is missing.

    A gradient that vanishes by symmetry is all rounding: of a bias before a normalization, of the
    queries of a single key. Each is judged against the largest of its module, and no finer than
    against a thousandth of the largest of all.
    """
    reached = {name: each for name, each in plain.items() if each is not None}
    if any(found[name] is None for name in reached):
        return float("inf")
    least = max(float(each.abs().max()) for each in reached.values()) / 1000
    floors: dict[str, float] = {}
    for name, each in reached.items():
        owner = name.rpartition(".")[0]
        floors[owner] = max(floors.get(owner, least), float(each.abs().max()))
    return max(
        relative(found[name], each, floors[name.rpartition(".")[0]])
        for name, each in reached.items()
    )


def judge(network: Network, method: str, mode: str) -> Verdict:
    """Run a method on a network and compare all that it does."""
    plain, tangent, most = plain_step(network, mode), reference(network, mode), bound(network, mode)
    module, at = fresh(network, mode), point(network.shape, mode)
    try:
        with autocast(mode), attention_of(method):
            F, dF = TangentComputer(method, check=False)(
                module, SIGMA_DATA * at.u, at.t, dx_dt(at), sigma_data=SIGMA_DATA
            )
        state, random_state = state_of(module), torch.get_rng_state()
        (F * at.cotangent).sum().backward()
    except Exception as error:
        return no_answer(error, most)
    errors = {
        "F": relative(F, plain.F),
        "dF": relative(dF, tangent.dF),
        "gradients": gradient_error(gradients_of(module), plain.gradients),
    }
    promised = max(most, 1e-3) if method == "finite_difference" else most
    limits = {"F": most, "dF": promised + tangent.error, "gradients": most}
    wrong = [name for name, error in errors.items() if not error <= limits[name]]
    line = state_error(module, state, random_state, plain, most)
    answer = "wrong " + ", ".join([*wrong, *["state"] * bool(line)]) if wrong or line else "exact"
    return Verdict(answer, line, most, source=tangent.source, **errors)


def attention_of(method: str):
    """Torch's forward mode has no formula for fused attention: its methods get the plain one."""
    plain = method in ("func", "two_pass")
    return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()


def no_answer(error: Exception, most: float) -> Verdict:
    line = (str(error).splitlines() or [""])[0]
    if isinstance(error, ValueError) and line.startswith("in "):
        return Verdict("refused", line, most)
    return Verdict("raises", f"{type(error).__name__}: {line}", most)


def dx_dt(at: Point) -> Tensor:
    """The velocity whose scaled tangent is that of the point."""
    return SIGMA_DATA * at.tu / at.tt.reshape(B, *[1] * (at.u.ndim - 1))
