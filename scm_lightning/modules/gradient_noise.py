# SPDX-License-Identifier: Apache-2.0
r"""Noise of a trained network's training signal, time by time.

    mean                  m = sum_k g_k / K
    gradient_variance     v = sum_k ||g_k - m||^2 / (K - 1)      trace of the covariance
    gradient_noise        v / ||m||^2
    tangent_norm          mean ||g|| of the tangent g, before it is bounded, L2 over a sample
    dF_dt                 root mean square of dF/dt along the ODE
    partial_F_partial_t   root mean square of the derivative in t alone, x_t and labels fixed

g_k is the gradient of the training loss of mini-batch k, all of whose samples are at the same time;
every time sees the same data and the same noise. Where the mean is lost in the noise, ||m||^2 is
v / K, so that gradient_noise saturates near K. The warm-up r is the run's own at its last step.
Source: the last two are the quantities of arXiv 2410.11081, Figure 4; the others (ours).
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from scm_lightning.core import widen
from scm_lightning.data import Batch
from scm_lightning.modules.base import GenerativeModule
from scm_lightning.modules.consistency import ConsistencyModule
from scm_lightning.objectives import Consistency


def gradient_noise(
    module: GenerativeModule,
    batches: Collection[Batch],
    t: float,
    parameters: Sequence[Tensor],
    in_precision: Callable[[], AbstractContextManager[Any]],
) -> dict[str, float]:
    """Measure at one time; weights, gradients and random numbers are left as they were.

    Args:
        module: the module that was trained; its `training_step` takes `times`.
        batches: mini-batches, at least two, of equally many samples.
        t: the time. Radians.
        parameters: of the trained network.
        in_precision: context in which the trainer computes a step.

    Returns:
        By name, see above; without the tangents' where the module computes none.
    """
    total, squares, norms, derivatives = torch.zeros(()), 0.0, [], []
    for number, batch in enumerate(batches):
        times = module.times_at(torch.full((len(batch.x0),), t, device=module.device))
        with _same_noise(module.device, number), in_precision():
            outputs: Any = module.training_step(batch, number, times)
        gradients = torch.autograd.grad(outputs["loss"], parameters, materialize_grads=True)
        gradient = torch.cat([widen(each.flatten()) for each in gradients])
        total = total + gradient
        squares += float(gradient.square().sum())
        if "tangent_norm" in outputs:
            norms.append(float(outputs["tangent_norm"].mean()))
        if isinstance(module, ConsistencyModule) and isinstance(module.objective, Consistency):
            with _same_noise(module.device, number), torch.no_grad(), in_precision():
                derivatives.append(_mean_squares(module, module.objective, batch, times[0]))
    count = len(batches)
    mean_square = float((total / count).square().sum())
    variance = (squares - count * mean_square) / (count - 1)
    noise = variance / mean_square if mean_square else math.inf
    found = {"gradient_noise": noise, "gradient_variance": variance}
    if norms:
        found["tangent_norm"] = sum(norms) / count
    if derivatives:
        rms = torch.stack(derivatives).mean(0).sqrt().tolist()
        found |= {"dF_dt": rms[0], "partial_F_partial_t": rms[1]}
    return found


@contextmanager
def _same_noise(device: torch.device, number: int) -> Iterator[None]:
    """Draw the same for a batch whatever the time, and leave the random numbers as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(number)
        yield


def _mean_squares(
    module: ConsistencyModule, objective: Consistency, batch: Batch, t: Tensor
) -> Tensor:
    """Mean squares of dF/dt along the ODE, and of its part in t alone. (2,), per radian squared."""
    x_t, z = module.path.add_noise(batch.x0, t)
    guidance = module.sample_guidance(len(t))
    teacher = module.guided(batch.given(), guidance)
    dx_dt = module.velocity(x_t, t, batch.x0, z, teacher)
    student = module.bound(batch.given(), guidance)
    factor = t.cos() * t.sin()
    squares = []
    for velocity in (dx_dt, torch.zeros_like(dx_dt)):
        _, scaled = objective.tangents(student, x_t, t, velocity, sigma_data=module.path.sigma_data)
        squares.append((widen(scaled.flatten(1)) / factor[:, None]).square().mean())
    return torch.stack(squares)
