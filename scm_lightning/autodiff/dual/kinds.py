# SPDX-License-Identifier: Apache-2.0
"""Kinds of torch functions, by what they do with their arguments' tangents."""

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from torch import Tensor


class Kind(Enum):
    """Treatment of a function.

    Attributes:
        METADATA: asks about shapes, types, places, or the graph: called as it is.
        CONSTANT: its result has no tangent, by definition.
        IN_PLACE: writes into its first argument.
        TEXT: prints numbers.
        ITERATOR: runs over the first axis.
        REFUSED: hands out memory.
        OPERATION: computes; by rule, or by torch's forward mode.
        FLAGGED: computes, or writes into its first argument, as its argument `inplace` says.
    """

    METADATA = 0
    CONSTANT = 1
    IN_PLACE = 2
    ITERATOR = 3
    REFUSED = 4
    OPERATION = 5
    TEXT = 6
    FLAGGED = 7


_TENSOR_PROPERTIES = frozenset(["T", "mT", "H", "mH", "real", "imag", "data"])
_METADATA = """
    size stride dim ndimension numel nelement element_size is_contiguous is_floating_point
    is_complex is_conj is_neg is_signed is_same_size is_set_to is_inference is_coalesced is_pinned
    get_device storage_offset sym_size sym_stride dense_dim sparse_dim __len__ __hash__ __dir__
    __bool__ __contains__ is_nonzero requires_grad_ retain_grad register_hook
    register_post_accumulate_grad_hook result_type can_cast promote_types equal allclose
    isclose eq ne lt le gt ge __eq__ __ne__ __lt__ __le__ __gt__ __ge__ isnan isinf isfinite
    argmax argmin argsort sizes get_autocast_dtype __index__ __int__ is_grad_enabled
    is_autocast_enabled broadcast_shapes
"""
_CONSTANT = """
    detach zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros
    new_ones new_full new_empty new_empty_strided new_tensor new tensor bernoulli multinomial
    _shape_as_tensor floor ceil round trunc fix sign signbit heaviside floor_divide __floordiv__
    __rfloordiv__
"""
"""Functions without a tangent: made of shapes alone, cut, drawn, or constant between jumps."""
_REFUSED = """
    data_ptr untyped_storage storage _typed_storage numpy __array__ __dlpack__
    __cuda_array_interface__ item tolist __float__ __complex__ share_memory_ set_ resize_
    resize_as_ swap_ as_subclass __reduce_ex__ __deepcopy__ from_numpy __getstate__ _make_subclass
    apply_ map_ map2_ backward
"""


def _functions(names: str) -> set[Any]:
    spaces = (torch, Tensor, torch.nn.functional)
    each = [(space, name) for space in spaces for name in names.split()]
    found = {vars(space).get(name, getattr(space, name, None)) for space, name in each}
    return {func for func in found if callable(func)}


def _places_of_flags() -> dict[Any, int]:
    """Positions at which functions take `inplace`."""
    found = {}
    for func in vars(torch.nn.functional).values():
        code = getattr(func, "__code__", None)
        if code is not None and "inplace" in code.co_varnames[: code.co_argcount]:
            found[func] = code.co_varnames.index("inplace")
    return found


_FLAGS = _places_of_flags()
KINDS: dict[Any, Kind] = dict.fromkeys(_FLAGS, Kind.FLAGGED)
"""Kinds by function, of those looked up so far."""
for _kind, _names in (
    (Kind.METADATA, _METADATA),
    (Kind.CONSTANT, _CONSTANT),
    (Kind.REFUSED, _REFUSED),
    (Kind.ITERATOR, "__iter__"),
    (Kind.TEXT, "__repr__ __str__ __format__"),
):
    KINDS.update(dict.fromkeys(_functions(_names), _kind))


def kind_of(func: Callable[..., Any]) -> Kind:
    """Look up how a function is treated; found out once per function."""
    kind = KINDS.get(func)
    if kind is None:
        kind = KINDS[func] = _find_kind(func)
    return kind


def is_told_to_write(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a call sets `inplace`, by name or by position."""
    place = _FLAGS.get(func)
    return bool(kwargs.get("inplace")) or (
        place is not None and len(args) > place and bool(args[place])
    )


def name_of(func: Any) -> str:
    """Name by which a user knows a function."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        return str(getattr(func.__self__, "__name__", name))
    return str(name)


def _find_kind(func: Any) -> Kind:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        owner = name_of(func)
        if owner == "data":
            return Kind.CONSTANT
        return Kind.OPERATION if owner in _TENSOR_PROPERTIES else Kind.METADATA
    if name in ("__set__", "__delete__"):
        return Kind.REFUSED if name_of(func) in _TENSOR_PROPERTIES else Kind.METADATA
    schema = getattr(func, "_schema", None)  # of an operator by torch.ops
    if schema is not None:
        written = [
            each.alias_info is not None and each.alias_info.is_write for each in schema.arguments
        ]
        if any(written[1:]):
            return Kind.REFUSED
        return Kind.IN_PLACE if any(written) else Kind.OPERATION
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
        return Kind.IN_PLACE
    in_place_operator = (
        name.startswith("__i") and name.endswith("__") and hasattr(Tensor, f"__{name[3:]}")
    )
    return Kind.IN_PLACE if in_place_operator and name != "__invert__" else Kind.OPERATION
