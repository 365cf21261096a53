# SPDX-License-Identifier: Apache-2.0
"""Steps to compare: of a configuration's network, and of attention alone.

A training step is forward, tangent and backward, without the optimizer. Attention is that of one
image of 4 heads of 64 channels, without gradient.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scm_lightning.autodiff import TangentComputer
from scm_lightning.autodiff.jvp_attention import attention_tangent, attention_with_lse
from scm_lightning.autodiff.methods import BY_NAME
from scm_lightning.bench.measuring import COMPILED
from scm_lightning.core import diffusion_loss
from scm_lightning.data import Batch
from scm_lightning.modules import ConsistencyModule, GenerativeModule
from scm_lightning.objectives import Consistency, TeacherVelocity

PLAIN = "diffusion"
FORWARD = "SDPA forward"
MATH_LIMIT = 4096
"""Tokens beyond which torch's own derivative is left out: its memory grows with their square."""

Step = Callable[[], object]


def training_steps(
    model: GenerativeModule, batch: Batch, compiled: bool = False
) -> dict[str, Step]:
    """Steps to compare.

    Args:
        model: a student's module; or a teacher's, whose network is trained as a student too.
        batch: data to train on.
        compiled: whether to measure compiled steps too.

    Returns:
        By name: a plain diffusion step, and a step of the student by every tangent method.
    """
    network = model.trained_network()
    students = [model] if isinstance(model, ConsistencyModule) else _students_of(model)
    for student in students:
        student.setup("fit")
    first, *others = students
    steps: dict[str, Step] = {PLAIN: partial(_plain_step, first, network, batch)}
    if first.objective.tangents is None:
        return {**steps, _kind(first): partial(_step, first, None, batch)}
    for name in BY_NAME:
        by_name = TangentComputer(name, check=False)
        steps[f"{_kind(first)}, {name}"] = partial(_step, first, by_name, batch)
    dual = TangentComputer(check=False)
    steps |= {f"{_kind(each)}, dual": partial(_step, each, dual, batch) for each in others}
    if compiled:
        whole, plain = TangentComputer(check=False, compile=True), torch.compile(network)
        steps[f"{PLAIN}, {COMPILED}"] = partial(_plain_step, first, plain, batch)
        steps[f"{_kind(first)}, dual, {COMPILED}"] = partial(_step, first, whole, batch)
    return steps


def _students_of(teacher: GenerativeModule) -> list[ConsistencyModule]:
    """A teacher's network as a student, from data and distilled from a copy of itself."""
    network, path = teacher.trained_network(), teacher.path
    source = copy.deepcopy(network)
    pair = ConsistencyModule(network, path=path)
    distilled = ConsistencyModule(network, TeacherVelocity(), source, init=None, path=path)
    return [each.to(teacher.device) for each in (pair, distilled)]


def _kind(student: ConsistencyModule) -> str:
    """Name of a student's steps."""
    if isinstance(student.objective, Consistency):
        return "sCD" if student.velocity_source.needs_teacher else "sCT"
    return type(student.objective).__name__


def _plain_step(student: ConsistencyModule, network: Any, batch: Batch) -> None:
    """A diffusion step of a student's network, at its times and with its conditions."""
    x0, given = batch.x0, batch.given()
    t, t_end = student.objective.sample_times(len(x0), student.path, student.device)
    x_t, z = student.path.add_noise(x0, t)
    sigma_data = student.path.sigma_data
    guidance = student.sample_guidance(len(x0))
    F = replace(student.bound(given, guidance), network=network)(x_t / sigma_data, t, t_end)
    losses = diffusion_loss(F, student.path.velocity(x0, z, t), sigma_data=sigma_data)
    losses.mean().backward()  # type: ignore[no-untyped-call]


def _step(student: ConsistencyModule, tangents: TangentComputer | None, batch: Batch) -> None:
    student.objective.tangents = tangents
    student.training_step(batch, 0)["loss"].backward()  # type: ignore[no-untyped-call]


def attention_steps(num_tokens: int, device: torch.device) -> dict[str, Step]:
    """Attention over one image.

    Args:
        num_tokens: tokens L.
        device: where to compute.

    Returns:
        By name: torch's fused forward, value and derivative by ours, and by torch's `math` formula.
    """
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    generator = torch.Generator(device).manual_seed(0)

    def draw() -> Tensor:
        shape = (1, 4, num_tokens, 64)
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    primals, tangents = (draw(), draw(), draw()), (draw(), draw(), draw())
    attention = torch.nn.functional.scaled_dot_product_attention

    @torch.no_grad()
    def ours() -> Tensor:
        o, lse = attention_with_lse(*primals)
        return attention_tangent(*primals, *tangents, o, lse)

    @torch.no_grad()
    def math() -> object:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.jvp(attention, primals, tangents)

    forward = torch.no_grad()(partial(attention, *primals))
    steps: dict[str, Step] = {FORWARD: forward, "value and tangent, ours": ours}
    if num_tokens <= MATH_LIMIT:
        steps["value and tangent, SDPA math"] = math
    return steps
