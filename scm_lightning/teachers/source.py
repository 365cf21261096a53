# SPDX-License-Identifier: Apache-2.0
"""A diffusion model of another source, as TrigFlow's F.

It is evaluated only, without derivatives, so any code will do that gives the right numbers. Outside
of the noise that the model was trained on it has no meaning: t is clamped to that range.
Axes: B batch, ... data axes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from scm_lightning.core import TrigFlow, at_least_float32
from scm_lightning.networks.classes import ClassConditioning


class SourceTeacher(ClassConditioning, ABC):
    """F(u, t, labels, **conditions) of a pretrained model, inside the range of its own noise.

    A source is one class: it opens a file or folder in `__init__`, and says here what it is.

    Args:
        source: what it is, to be said: the kind of the network and the name of its file.
        num_classes: number of classes; 0 for a network without labels.
        noise_range: smallest and largest ratio of noise to data, sigma / alpha, of its training.
            Data units.
        sigma_data: standard deviation of the data that it was trained on, in data units; None if it
            can be any, and is told by the student's path.
        licence: licence of its weights, carried into what is made of them; None if not known.
        condition_names: further conditions that it is called with by name.

    Attributes:
        path: owner of the `sigma_data` that F is for.
    """

    def __init__(
        self,
        source: str,
        *,
        num_classes: int = 0,
        noise_range: tuple[float, float] = (0.0, math.inf),
        sigma_data: float | None = None,
        licence: str | None = None,
        condition_names: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.source, self.num_classes, self.licence = source, num_classes, licence
        self.noise_range, self.sigma_data = noise_range, sigma_data
        self.condition_names = condition_names
        self.path = TrigFlow(1.0 if sigma_data is None else sigma_data)

    @abstractmethod
    def F(self, u: Tensor, t: Tensor, labels: Tensor | None, **conditions: Tensor) -> Tensor:
        """Evaluate F where the model was trained.

        Args:
            u: x_t / sigma_data. (B, ...), unit variance.
            t: times within `t_range`. (B,), radians.
            labels: class labels, NULL_LABEL for no class. (B,) int64, or None for no class.
            conditions: by the names in `condition_names`. (B, ...) each.

        Returns:
            F. Shape of u, unit variance.
        """

    def own_network(self) -> nn.Module | None:
        """Network of this package with the same F, from which a student can start; None if none."""
        return None

    def amplification(self) -> str:
        """Name an error of the model that grows on the way to F, and by how much; empty if none.

        For a prediction of the noise, "its error is divided by cos t: up to 157 times".
        """
        return ""

    def latents_misfit(self, mean: Sequence[float], std: Sequence[float]) -> str:
        """Say in one clause why latents are not those that it was trained on; empty if not known.

        Args:
            mean: mean that is subtracted from a latent of the data, per channel.
            std: standard deviation that it is divided by, per channel.
        """
        return ""

    def on_path(self, path: TrigFlow) -> None:
        """Take the student's path.

        Raises:
            ValueError: if the model was trained on data of another standard deviation.
        """
        if self.sigma_data not in (None, path.sigma_data):
            raise ValueError(
                f"teacher and student need the same sigma_data: {self.source} was trained with "
                f"{self.sigma_data:g}, the student has {path.sigma_data:g}; set path.sigma_data"
            )
        self.path = path

    @property
    def t_range(self) -> tuple[float, float]:
        """Times of `noise_range`. Radians."""
        low, high = (math.atan(ratio / self.path.sigma_data) for ratio in self.noise_range)
        return low, high

    def forward(
        self,
        u: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        **conditions: Tensor,
    ) -> Tensor:
        """Evaluate F; see "A network" in scm_lightning/README.md.

        Raises:
            ValueError: if a guidance scale comes: `core.Guided` guides a teacher.
        """
        if guidance is not None:
            raise ValueError(
                f"{self.source} takes no guidance scale as an input; guide it by `core.Guided`"
            )
        return at_least_float32(self.F(u, t.clamp(*self.t_range), labels, **conditions))

    def described(self) -> str:
        """One line: what it is, at which times it means something, and under which licence."""
        size = sum(weight.numel() for weight in self.parameters()) / 1e6
        low, high = self.t_range
        parts = [
            f"{self.source}, {size:.3g} M parameters",
            f"t from {low:.4f} to {high:.4f} rad",
            *filter(None, [self.amplification()]),
            *([] if self.licence is None else [f"licence {self.licence}"]),
        ]
        return "; ".join(parts)
