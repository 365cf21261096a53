# SPDX-License-Identifier: Apache-2.0
"""State of modules beside their weights: counters, flags, caches, generators, lazy parts.

A forward may change all of it. It is put back one level deep: an attribute itself, the
members of a list or dictionary, the numbers in a tensor. Objects of other kinds are left alone.
"""

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OF_TORCH = frozenset(vars(nn.Module()))
_TABLES = ("_parameters", "_buffers", "_modules")
_DICTS = (dict, OrderedDict, defaultdict, Counter)


class Attributes:
    """Copies of the attributes of all modules of a network, to put back.

    Args:
        network: the network; what is scripted in it holds no attributes of Python.
    """

    def __init__(self, network: nn.Module) -> None:
        parts = [x for x in network.modules() if not isinstance(x, torch.jit.ScriptModule)]
        self.tables = [(table := vars(x)[name], dict(table)) for x in parts for name in _TABLES]
        self.attributes = [
            (own := vars(x), {name: own[name] for name in own.keys() - _OF_TORCH}) for x in parts
        ]
        lazy = [vars(x)["_non_persistent_buffers_set"] for x in parts]
        values = {id(x): x for _, own in self.attributes for x in own.values()}
        self.members = [(x, x.copy()) for x in values.values() if type(x) in (*_DICTS, list, deque)]
        sets = [*lazy, *(x for x in values.values() if type(x) is set)]
        self.sets = [(x, set(x)) for x in sets]
        self.tensors = [(x, x.clone()) for x in values.values() if _is_plain(x)]
        self.restorers = [f for x in values.values() if (f := _restorer(x)) is not None]

    def put_back(self, exchange: Mapping[int, Any]) -> None:
        """Put everything back.

        Args:
            exchange: what to put in place of a parameter, by its id.
        """
        for table, kept in (*self.tables, *self.attributes):
            for name in table.keys() - kept.keys() - _OF_TORCH:
                del table[name]
            for name, x in kept.items():
                table[name] = exchange.get(id(x), x)
        for held, kept in self.members:
            if isinstance(held, dict):
                held.clear()
                held.update({key: exchange.get(id(x), x) for key, x in kept.items()})
            else:
                held.clear()
                held.extend(exchange.get(id(x), x) for x in kept)
        for names, members in self.sets:
            names.clear()
            names.update(members)
        for x, value in self.tensors:
            put_numbers_back(x, value)
        for restore in self.restorers:
            restore()


def put_numbers_back(x: Tensor, value: Tensor) -> None:
    """Write the numbers of a copy into a tensor, where they differ."""
    # An expanded one cannot be written into; sparse ones cannot be compared.
    if x.layout is not torch.strided or not torch.equal(x, value):
        with torch.no_grad():
            x.copy_(value)


def _is_plain(x: Any) -> bool:
    return type(x) is Tensor and not x.requires_grad and not x.is_inference()


def _restorer(x: Any) -> Callable[[], Any] | None:
    """Function that restores a generator of random numbers; None for anything else."""
    if isinstance(x, torch.Generator):
        numbers = x.get_state()
        return lambda: x.set_state(numbers)
    if isinstance(x, random.Random):
        python = x.getstate()
        return lambda: x.setstate(python)
    if isinstance(x, np.random.RandomState):
        legacy = x.get_state()
        return lambda: x.set_state(legacy)
    if isinstance(x, np.random.Generator):
        bits, state = x.bit_generator, x.bit_generator.state
        return lambda: setattr(bits, "state", state)
    return None
