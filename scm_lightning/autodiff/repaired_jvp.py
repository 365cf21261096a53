# SPDX-License-Identifier: Apache-2.0
r"""Torch's own forward mode, with its faults repaired: of dropout and of norms (torch 2.13).

    dropout      on channels-last activations it draws another mask than a plain forward
    group norm   on channels-last activations it raises
    norms        under autocast on a CPU the tangent gets another type than the value, which the
                 next layer refuses

The values of these operations are those of a plain forward, to the bit.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from scm_lightning.autodiff.dual.forward_mode import underived


def jvp(
    f: Callable[[Tensor, Tensor], Tensor],
    primals: tuple[Tensor, Tensor],
    tangents: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """`torch.func.jvp` with the repairs.

    Args:
        f: function of two tensors.
        primals: its arguments.
        tangents: their tangents, of the same shapes.

    Returns:
        Value and derivative.

    Raises:
        TangentError: if torch has no forward derivative of what the function does.
    """

    def repaired(*args: Tensor) -> Tensor:
        with _Repairs():
            return f(*args)

    # Neither fused attention nor compiled parts have a forward derivative.
    eager = torch.compiler.set_stance("force_eager")
    with underived("torch.func.jvp does not take it"), sdpa_kernel(SDPBackend.MATH), eager:
        out, derivative = torch.func.jvp(repaired, primals, tangents)  # type: ignore[misc]
    return out, derivative


def outside_of_transforms() -> AbstractContextManager[Any]:
    """Context in which no `torch.func.jvp` or `grad` is under way."""
    context: AbstractContextManager[Any] = torch._C._DisableFuncTorch()
    return context


class _Repairs(TorchFunctionMode):
    """Mode that sees every operation inside its context."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, or what stands in its place."""
        repair = _REPAIRS.get(getattr(func, "__name__", ""))
        if repair is None:
            return func(*args, **(kwargs or {}))
        return repair(func, *args, **(kwargs or {}))


def _dropout(
    func: Callable[..., Tensor],
    input: Tensor,  # noqa: A002  torch's own keyword, here and below
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    """Multiply by a mask that is drawn on ones, outside of forward mode."""
    if not training or p == 0.0:
        return input
    with outside_of_transforms():
        # The layout decides about the order in which the numbers are drawn.
        like = torch.empty_strided(
            input.shape, input.stride(), dtype=input.dtype, device=input.device
        )
        mask = func(torch.ones_like(like), p, True)
    return input.mul_(mask) if inplace else input * mask


def _norm(
    func: Callable[..., Tensor],
    input: Tensor,  # noqa: A002
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Cast the tangent to the type of the value."""
    out = func(input, *args, **kwargs)
    primal, tangent = forward_ad.unpack_dual(out)  # type: ignore[no-untyped-call]
    if tangent is None or tangent.dtype == primal.dtype:
        return out
    return _joined(primal, tangent)


def _group_norm(
    func: Callable[..., Tensor],
    input: Tensor,  # noqa: A002
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Take the tangent from a contiguous copy."""
    primal, tangent = forward_ad.unpack_dual(input)  # type: ignore[no-untyped-call]
    if tangent is None or input.is_contiguous():
        return _norm(func, input, *args, **kwargs)
    copied = func(input.contiguous(), *args, **kwargs)
    _, tangent = forward_ad.unpack_dual(copied)  # type: ignore[no-untyped-call]
    return _joined(func(primal, *args, **kwargs), tangent)


def _joined(primal: Tensor, tangent: Tensor) -> Tensor:
    out: Tensor = forward_ad.make_dual(primal, tangent.to(primal.dtype))  # type: ignore[no-untyped-call]
    return out


_REPAIRS: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), _dropout),
    **dict.fromkeys(("layer_norm", "instance_norm", "batch_norm"), _norm),
    "group_norm": _group_norm,
}
