# SPDX-License-Identifier: Apache-2.0
"""The teacher as a part of a student's module: never trained, never saved."""

from typing import Any

from torch import Tensor, nn


class FrozenTeacher(nn.Module):
    """Wrapper that keeps a network as it is.

    It has no gradients, stays in eval mode whatever the trainer does, and is in no checkpoint:
    the student's file would double in size for weights that have a file of their own.

    Args:
        network: F(u, t, labels, guidance) of a diffusion model.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_keep_own)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Stay in eval mode."""
        return super().train(False)

    def forward(
        self,
        u: Tensor,
        t: Tensor,
        labels: Tensor | None = None,
        guidance: Tensor | None = None,
        **named: Tensor,
    ) -> Tensor:
        """Evaluate the network; see "A network" in scm_lightning/README.md."""
        F: Tensor = self.network(u, t, labels, guidance, **named)
        return F


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


def _keep_own(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Fill the gap that `_leave_out` left, so that strict loading stays strict elsewhere."""
    state.update(module.get_submodule("network").state_dict(prefix=f"{prefix}network."))
