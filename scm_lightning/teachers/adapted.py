# SPDX-License-Identifier: Apache-2.0
"""Any module as a teacher, by what it predicts and of which process."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from scm_lightning.core import Process, TrigFlow
from scm_lightning.networks import ParametrizedNetwork
from scm_lightning.teachers.conversion_check import (
    Conversion,
    Denoiser,
    check_conversion,
    even_times,
)
from scm_lightning.teachers.source import SourceTeacher


class AdaptedTeacher(SourceTeacher):
    """F of a module that was trained on another process; ten lines make a teacher of it.

        class MyTeacher(AdaptedTeacher):
            def __init__(self, path: str) -> None:
                net = MyUNet()
                net.load_state_dict(load_file(path))
                process = EDMProcess(TrigFlow(), predicts="sample")  # a denoiser D(x, sigma)
                super().__init__(net, process, noise_range=(0.002, 80.0), num_classes=10)

    The module is called as module(x, time, labels, **conditions) with the process's own noisy data
    and time, without labels if it has no classes; NULL_LABEL, -1, asks for no class.

    Args:
        module: the module.
        process: its process and what it predicts: `EDMProcess`, `RectifiedFlowProcess`,
            `VPProcess` or `DiscreteProcess` of `core`. `sigma_data` is that of its path.
        noise_range: smallest and largest ratio of noise to data, sigma / alpha, of its training.
            Units of the module's own data.
        num_classes: number of classes; 0 for a module without labels.
        data_scale: factor from the module's own data to the data of the run, as 1/2 for data of
            unit variance and a `sigma_data` of 1/2.
        sigma_data: standard deviation of the data in the run, if the module asks for one; None for
            the one of the student's path. A process is exact for any.
        licence: licence of its weights.
        condition_names: further conditions that it is called with by name.
        source: what it is, to be said; None for the name of its class.
        sign: -1 for a module that predicts the negative.
    """

    def __init__(
        self,
        module: nn.Module,
        process: Process,
        *,
        noise_range: tuple[float, float] = (0.0, math.inf),
        num_classes: int = 0,
        data_scale: float = 1.0,
        sigma_data: float | None = None,
        licence: str | None = None,
        condition_names: tuple[str, ...] = (),
        source: str | None = None,
        sign: float = 1.0,
    ) -> None:
        low, high = noise_range
        super().__init__(
            type(module).__name__ if source is None else source,
            num_classes=num_classes,
            noise_range=(low * data_scale, high * data_scale),
            sigma_data=sigma_data,
            licence=licence,
            condition_names=condition_names,
        )
        if not (math.isfinite(data_scale) and data_scale > 0):
            raise ValueError(
                f"data_scale must be a positive number, got {data_scale}; give the factor from the "
                "model's own data to yours, 1 if they are the same"
            )
        self.data_scale = data_scale
        self.optional_conditions: tuple[str, ...] = getattr(module, "optional_conditions", ())
        self.network = ParametrizedNetwork(module, process, sign).eval().requires_grad_(False)
        if sigma_data is None:
            self.path = TrigFlow(process.path.sigma_data * data_scale)
        self.on_path(self.path)

    def F(self, u: Tensor, t: Tensor, labels: Tensor | None, **conditions: Tensor) -> Tensor:
        """See `SourceTeacher`."""
        known = labels if self.num_classes else None
        found: Tensor = self.network(u, t, known, **conditions)
        return found

    def on_path(self, path: TrigFlow) -> None:
        """Take the student's path; the process then is that of the same times."""
        super().on_path(path)
        own = TrigFlow(path.sigma_data / self.data_scale)
        self.network.process = replace(self.network.process, path=own)

    def own_network(self) -> nn.Module:
        """The module with its conversion: a student of the same classes starts as its teacher."""
        return self.network

    def amplification(self) -> str:
        """See `SourceTeacher`."""
        process: Any = self.network.process
        if process.predicts not in ("epsilon", "sample"):
            return ""
        is_noise = process.predicts == "epsilon"
        end = torch.tensor([self.t_range[1 if is_noise else 0]], dtype=torch.float64)
        factor = float(process.amplification(end))
        what, by = ("noise", "cos t") if is_noise else ("data", "sin t")
        return f"it predicts the {what}, and its error is divided by {by}: up to {factor:.3g} times"

    def check(
        self,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        labels: Tensor | None = None,
        *,
        times: Tensor | None = None,
        **conditions: Tensor,
    ) -> Conversion:
        """Compare F with the module's own denoiser, all in units of the module's data.

        Args:
            denoiser: D(x, sigma, labels, **conditions) of x = x0 + sigma eps; without labels where
                there are none.
            shape: of a sample.
            labels: class labels, one for each time. (B,) int64.
            times: times to compare at, radians; None for seven with both ends of the range. (B,).
            conditions: by name. (B, ...) each.

        Raises:
            ValueError: if they differ; see `check_conversion`.
        """
        if times is None:
            times = even_times(self)
        scale = self.data_scale

        def in_units_of_the_run(x: Tensor, sigma: Tensor, *rest: Any, **named: Any) -> Tensor:
            return scale * denoiser(x / scale, sigma / scale, *rest, **named)

        return check_conversion(
            self,
            in_units_of_the_run,
            shape,
            labels,
            times=times,
            amplified=self.network.process.amplification(times),
            **conditions,
        )
