# SPDX-License-Identifier: Apache-2.0
"""Teachers of classes that were never trained without one: another network stands for none.

EDM's and EDM2's networks of classes saw a class with every sample. Guidance calls its network for
samples of no class too, and takes them from a network that was trained without classes.
Axes: B batch, ... data axes.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from scm_lightning.core import NULL_LABEL, TrigFlow
from scm_lightning.teachers.source import SourceTeacher


class ClassTeacher(SourceTeacher):
    """A source of one network for the samples with a class, and of another for those without.

    Args:
        source: what it is, to be said.
        data_shape: shape of one sample.
        unconditional: teacher without classes, of samples of that shape, or None.
        options: those of `SourceTeacher`.

    Raises:
        ValueError: if the other network does not fit.
    """

    data_shape: tuple[int, ...]

    def __init__(
        self,
        source: str,
        data_shape: tuple[int, ...],
        unconditional: "ClassTeacher | None" = None,
        *,
        num_classes: int = 0,
        noise_range: tuple[float, float],
        sigma_data: float | None = None,
        licence: str | None = None,
    ) -> None:
        if unconditional is not None:
            source = f"{source} and for no class {unconditional.source}"
            if not num_classes or unconditional.num_classes:
                raise ValueError(
                    f"unconditional must be a network without classes beside one with classes, got "
                    f"{unconditional.num_classes} and {num_classes} classes; leave it out, or give "
                    "the file of a network that was trained without classes"
                )
            if unconditional.data_shape != data_shape:
                raise ValueError(
                    f"unconditional must be for samples of shape {data_shape}, got "
                    f"{unconditional.data_shape}; give a file of the same kind of data"
                )
        super().__init__(
            source,
            num_classes=num_classes,
            noise_range=noise_range,
            sigma_data=sigma_data,
            licence=licence,
        )
        self.data_shape, self.unconditional = data_shape, unconditional

    @abstractmethod
    def F_of_class(self, u: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Evaluate F of the source's own network.

        Args:
            u: x_t / sigma_data. (B, *data_shape), unit variance.
            t: times within `t_range`. (B,), radians.
            labels: classes. (B,) int64; None for a network without classes.
        """

    def on_path(self, path: TrigFlow) -> None:
        """Take the student's path, with the other network too."""
        super().on_path(path)
        if self.unconditional is not None:
            self.unconditional.on_path(path)

    def F(self, u: Tensor, t: Tensor, labels: Tensor | None, **conditions: Tensor) -> Tensor:
        """Evaluate F, of the samples of no class by the network without classes.

        Raises:
            ValueError: if the samples have another shape, or there is no network for their labels.
        """
        if u.shape[1:] != self.data_shape:
            raise ValueError(
                f"{self.source} takes samples of shape {self.data_shape}, got "
                f"{tuple(u.shape[1:])}; give it the data that it was trained on"
            )
        none = torch.ones(len(u), dtype=torch.bool, device=u.device)
        if labels is not None:
            none = labels == NULL_LABEL
        if not self.num_classes:
            if not bool(none.all()):
                raise ValueError(f"{self.source} has no classes, got labels; leave them out")
            return self.F_of_class(u, t, None)
        if labels is not None and not bool(none.any()):
            return self.F_of_class(u, t, labels)
        if self.unconditional is None:
            raise ValueError(
                f"{self.source} was never trained without a class, got samples of none; set its "
                "unconditional to the file of a network without classes, or train without guidance"
            )
        F_none = self.unconditional(u[none], t[none])
        F = u.new_empty(u.shape, dtype=F_none.dtype)
        F[none] = F_none
        if labels is not None and not bool(none.all()):
            F[~none] = self.F_of_class(u[~none], t[~none], labels[~none]).to(F.dtype)
        return F
