# SPDX-License-Identifier: Apache-2.0
"""A network of this package as a model of diffusers."""

from collections.abc import Mapping
from typing import Any

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before diffusers

# isort: on
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from scm_lightning.export.network_of import untrained_network
from scm_lightning.networks.diffusers_network import DiffusersNetwork


class SCMNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """F(u, t, labels, guidance) with `save_pretrained` and `from_pretrained`.

    Args:
        class_path: class of the network, by name; one of those of this package.
        init_args: its arguments; objects among them as `class_path` and `init_args` too.

    Raises:
        ValueError: if there is no such class, or it has no such arguments.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, class_path: str, init_args: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        spec = {"class_path": class_path, "init_args": init_args or {}}
        self.network = untrained_network(spec)

    def forward(
        self,
        u: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        t_end: Tensor | None = None,
    ) -> Tensor:
        """Evaluate F.

        Args:
            u: x_t / sigma_data. (B, ...), unit variance.
            t: times. (B,), radians.
            labels: class labels. (B,) int64, or None.
            guidance: guidance scales of a network that takes them. (B,), or None.
            t_end: where the step leads, for a network that takes it. (B,), radians.

        Returns:
            F. Shape of u, unit variance.
        """
        ends = () if t_end is None else (t_end,)
        F: Tensor = self.network(u, t, labels, guidance, *ends)
        return F


def plain_model(network: DiffusersNetwork) -> Any:
    """The model of diffusers inside a network of ours, as it is without us.

    Args:
        network: the network, which keeps its own.

    Returns:
        A copy, in evaluation.
    """
    own: Any = network.model
    wrapped = f"{network.map.projection}.project."
    weights = {
        f"{network.map.projection}.{name.removeprefix(wrapped)}"
        if name.startswith(wrapped)
        else name: weight
        for name, weight in own.state_dict().items()
    }
    with torch.random.fork_rng(devices=[]):
        model = type(own).from_config(own.config)
    model.load_state_dict(weights)
    return model.eval()
