# SPDX-License-Identifier: Apache-2.0
"""The reduced gradient of a sharded parameter is the mean of those of all processes (FSDP2).

No process has the reduced gradient whole, so none can compare it with another's. Compared are
projections on a vector of random signs w, the same in every process, W of them:

    1/W sum_r w . g_r  =  sum_r w[slice r] . G_r        g_r: gradient that process r has computed
                                                        G_r: its slice of the reduced gradient

The left side is summed where autograd hands a gradient to its leaf, before FSDP2 sees it, and over
all batches that are accumulated; the right side is taken from what the optimizer gets, and w is cut
by `distribute_tensor`. So nothing of FSDP2's own path is on the left: a reduction that is left out,
forgets a process, sums for a mean, or returns slices in the wrong order, makes a difference of the
order of the gradient. To replace its reduce-scatter by a checked one would show only that one call,
needs a whole copy of all gradients, and collectives within the backward. Here one all_reduce of
four numbers per parameter is added to the step.

Rounding makes a difference too, of a few eps |g|, and sqrt(eps) |g| is allowed, |g| being the mean
of the processes' norms: a slice or a process forgotten shows, one wrong bit does not. Numbers that
are not finite are not judged here.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.graph import get_gradient_edge
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from scm_lightning.autodiff.repaired_jvp import outside_of_transforms


class ShardedSync:
    """Listens to the gradients of a module's sharded parameters; see the module.

    Without any, and outside of the steps that are listened to, it costs nothing.

    Args:
        module: owner of networks that are sharded over all processes.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._handles: list[Any] = []
        self._leaves: dict[str, Any] = {}
        self._own: dict[str, Tensor] = {}

    def listen(self) -> None:
        """Start before the first batch of a step; nothing happens if that is done already."""
        if self._handles:
            return
        for prefix, network in self._module.named_modules():
            is_sharded = isinstance(network, FSDPModule)
            if is_sharded:
                # Runs after FSDP2's own hook: the parameters are whole then.
                hook = partial(self._listen_to, prefix)
                self._handles.append(network.register_forward_pre_hook(hook))

    def stop(self) -> None:
        """Forget what was heard, and hear nothing more."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._leaves, self._own = [], {}, {}

    def wrongly_reduced(self) -> list[str]:
        """Compare, and stop. All processes must take part.

        Returns:
            names of parameters whose reduced gradient is not the mean; the same in all processes.
        """
        heard, sums, allowed = self._own, {}, []
        is_listening = bool(self._handles)
        self.stop()
        for name, parameter in self._module.named_parameters() if is_listening else ():
            if isinstance(parameter, DTensor) and parameter.requires_grad:
                none = torch.zeros(2, dtype=torch.float64, device=parameter.device)
                sums[name] = torch.cat([heard.get(name, none), _reduced(parameter)])
                allowed.append(torch.finfo(parameter.dtype).eps ** 0.5)
        if not sums:
            return []
        total = torch.stack(list(sums.values()))
        distributed.all_reduce(total)
        own, norm, reduced, missing = total.cpu().unbind(1)
        own, norm = own / distributed.get_world_size(), norm / distributed.get_world_size()
        difference = (reduced - own).abs()
        is_wrong = difference.isfinite() & (difference > norm * torch.tensor(allowed))
        is_wrong |= (missing > 0) & (norm > 0)
        return [name for name, wrong in zip(sums, is_wrong.tolist(), strict=True) if wrong]

    def _listen_to(self, prefix: str, network: nn.Module, inputs: Any) -> None:
        """Forward pre-hook of a sharded network or block."""
        for name, parameter in network.named_parameters(prefix):
            if isinstance(parameter, DTensor) or not parameter.requires_grad:
                continue  # of a block within, which has a hook of its own
            # A hook of the tensor would hear gradients that are recomputed within a backward too.
            # Within torch.func.jvp a parameter would be asked as a constant of that level.
            with outside_of_transforms():
                leaf = get_gradient_edge(parameter).node
            if self._leaves.get(name) is not leaf:
                self._leaves[name] = leaf
                self._handles.append(leaf.register_prehook(partial(self._hear, name)))

    def _hear(self, name: str, gradients: tuple[Tensor, ...]) -> None:
        gradient = gradients[0].detach()
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
        heard = torch.stack([_projection(gradient, _signs(gradient)), norm])
        self._own[name] = self._own[name] + heard if name in self._own else heard


def _reduced(parameter: DTensor) -> Tensor:
    """Projection of this process's slice of the gradient; 1 if there is no such slice. (2,)."""
    gradient: Any = parameter.grad
    found = torch.zeros(2, dtype=torch.float64, device=parameter.device)
    if not isinstance(gradient, DTensor) or gradient.placements != parameter.placements:
        found[1] = 1
        return found
    whole = _signs(gradient)
    # Without a source every process cuts its own copy, and nothing is sent.
    signs: Any = distribute_tensor(
        whole, parameter.device_mesh, parameter.placements, src_data_rank=None
    )
    found[0] = _projection(gradient.to_local(), signs.to_local())
    return found


def _signs(like: Tensor) -> Tensor:
    """Random -1 and 1, the same for all tensors of one shape; no state of a run is touched."""
    generator = torch.Generator(like.device).manual_seed(0)
    signs = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return signs.random_(0, 2, generator=generator).mul_(2).sub_(1)


def _projection(x: Tensor, signs: Tensor) -> Tensor:
    """Scalar, float64."""
    return (x * signs).sum(dtype=torch.float64)
