# SPDX-License-Identifier: Apache-2.0
r"""How noisy the training signal of a trained network is, time by time.

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

import inspect
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from scm_lightning.core import Bound, widen
from scm_lightning.core.times import MAX_TIME
from scm_lightning.data import Batch
from scm_lightning.modules import ConsistencyModule, GenerativeModule
from scm_lightning.objectives import Consistency
from scm_lightning.storage.side_files import write_result

FILE = "gradient_noise.json"
TIMES = (0.01, 0.03, 0.1, 0.3, 0.7, 1.1, 1.4, 1.5, 1.55, 1.5645)
"""The last is atan(80 / sigma_data) with a sigma_data of 0.5, where sampling starts. Radians."""


class GradientNoise(Callback):
    """Measures the gradient at fixed times when training ends; writes `gradient_noise.json`.

    The weights, their gradients and the state of the random numbers are left as they were. The data
    are the last training batches.

    Args:
        times: times to measure at. Radians.
        num_batches: mini-batches K per time.
        num_samples: samples of every mini-batch, the first of a training batch.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self, times: Sequence[float] = TIMES, num_batches: int = 16, num_samples: int = 128
    ) -> None:
        if not times or not all(0.0 < t <= MAX_TIME for t in times):
            raise ValueError(
                f"times of gradient noise must be angles in (0, {MAX_TIME}], got {list(times)}"
            )
        if num_batches < 2 or num_samples < 1:
            raise ValueError(
                f"gradient noise takes at least 2 batches of at least 1 sample, got {num_batches} "
                f"of {num_samples}"
            )
        self.times = tuple(times)
        self.num_samples = num_samples
        self._batches: deque[Batch] = deque(maxlen=num_batches)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse at once what cannot be measured at the end.

        Raises:
            ValueError: if the run is too short, has several processes or another module.
        """
        steps, needed = trainer.max_steps - trainer.global_step, self._batches.maxlen or 0
        takes_times = "times" in inspect.signature(pl_module.training_step).parameters
        is_ours = isinstance(pl_module, GenerativeModule) and takes_times
        if not is_ours or trainer.world_size > 1 or 0 <= steps < needed:
            raise ValueError(
                f"gradient noise needs a GenerativeModule whose training_step takes `times`, one "
                f"process and at least {needed} steps, got {type(pl_module).__name__}, "
                f"{trainer.world_size} and {steps}; leave the callback out, or lower num_batches"
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Keep the batch.

        Raises:
            ValueError: if it is too small.
        """
        if len(batch.x0) < self.num_samples:
            raise ValueError(
                f"training batches must hold the {self.num_samples} samples that gradient noise is "
                f"measured on, got {len(batch.x0)}; lower num_samples"
            )
        x0, labels = batch.x0[: self.num_samples], batch.labels
        self._batches.append(Batch(x0, None if labels is None else labels[: self.num_samples]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and write."""
        content: dict[str, Any] = {
            "step": trainer.global_step,
            "num_batches": len(self._batches),
            "num_samples": self.num_samples,
            "t": list(self.times),
            "tan_t": [math.tan(t) for t in self.times],
        }
        assert isinstance(pl_module, GenerativeModule), "checked when training began"
        rows = [self.measure(trainer, pl_module, t) for t in self.times]
        content |= {name: [row[name] for row in rows] for name in rows[0]}
        file = Path(trainer.default_root_dir) / FILE
        write_result(file, json.dumps(content, indent=2) + "\n")
        self._batches.clear()

    def measure(self, trainer: Trainer, module: GenerativeModule, t: float) -> dict[str, float]:
        """Measure at one time, on the batches kept.

        Args:
            trainer: whose first parameter group is the trained network.
            module: the module that was trained.
            t: the time, in radians.

        Returns:
            By name, see above; without the tangents' where the module computes none.
        """
        parameters = trainer.optimizers[0].param_groups[0]["params"]
        total, squares, norms, derivatives = torch.zeros(()), 0.0, [], []
        for number, batch in enumerate(self._batches):
            times = module.times_at(torch.full((self.num_samples,), t, device=module.device))
            with _same_noise(module.device, number), trainer.precision_plugin.train_step_context():
                outputs: Any = module.training_step(batch, number, times)
            gradients = torch.autograd.grad(outputs["loss"], parameters, materialize_grads=True)
            gradient = torch.cat([widen(each.flatten()) for each in gradients])
            total = total + gradient
            squares += float(gradient.square().sum())
            if "tangent_norm" in outputs:
                norms.append(float(outputs["tangent_norm"].mean()))
            if isinstance(module, ConsistencyModule) and isinstance(module.objective, Consistency):
                in_precision = trainer.precision_plugin.train_step_context()
                with _same_noise(module.device, number), torch.no_grad(), in_precision:
                    derivatives.append(_mean_squares(module, module.objective, batch, times[0]))
        count = len(self._batches)
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
    teacher = module.guided(batch.labels, guidance)
    dx_dt = module.velocity(x_t, t, batch.x0, z, teacher)
    student = Bound(module.student, batch.labels, guidance)
    factor = t.cos() * t.sin()
    squares = []
    for velocity in (dx_dt, torch.zeros_like(dx_dt)):
        _, scaled = objective.tangents(student, x_t, t, velocity, sigma_data=module.path.sigma_data)
        squares.append((widen(scaled.flatten(1)) / factor[:, None]).square().mean())
    return torch.stack(squares)
