# SPDX-License-Identifier: Apache-2.0
"""A network of another process as F: what goes in is scaled, what comes out is mixed.

Axes: B batch, ... data axes.
"""

import torch
from torch import Tensor, nn

from scm_lightning.core import Process, expand_time
from scm_lightning.networks.classes import ClassConditioning


class ParametrizedNetwork(ClassConditioning):
    """F(u, t, labels, guidance, **conditions) by a network that predicts something else.

    Its F is exact and has a derivative, so it may be a student that starts as its teacher and keeps
    the layers of the network inside. Of a predicted noise an error grows by 1 / cos t, up to 160
    times at t_max: a network of v or of a flow makes the better student.

    Args:
        network: network(x, time, labels, guidance, **conditions) at the process's own noisy data
            and time. It is called without what is not given, and its output counts by `process`.
        process: the process it was trained on, what it predicts, and for which `sigma_data`.
        sign: -1 for a network that predicts the negative of it.

    Attributes:
        condition_names: the conditions that the network is called with by name.
        optional_conditions: those of them that it can do without.
    """

    def __init__(self, network: nn.Module, process: Process, sign: float = 1.0) -> None:
        super().__init__()
        self.network, self.process, self.sign = network, process, sign
        self.num_classes: int = getattr(network, "num_classes", 0)
        self.condition_names: tuple[str, ...] = getattr(network, "condition_names", ())
        self.optional_conditions: tuple[str, ...] = getattr(network, "optional_conditions", ())

    def forward(
        self,
        u: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        **conditions: Tensor,
    ) -> Tensor:
        """Evaluate the network; see "A network" in scm_lightning/README.md.

        Args:
            u: x_t / sigma_data. (B, ...), unit variance.
            t: times. (B,), radians; of any type, the times may be wider than the data.
            labels: class labels. (B,) int64.
            guidance: guidance scales of a network that takes them. (B,).
            conditions: by name, constant in u and t. (B, ...) each.

        Returns:
            F. Shape of u, unit variance.
        """
        x = (expand_time(self.process.scale_from_t(t), u) * u).to(u.dtype)
        known = [] if labels is None else [labels]
        scales = {} if guidance is None else {"guidance": guidance}
        time = self.process.time_from_t(t).to(torch.promote_types(u.dtype, torch.float32))
        predicted = self.network(x, time, *known, **scales, **conditions)
        return self.process.F_from_prediction(self.sign * predicted, x, t)
