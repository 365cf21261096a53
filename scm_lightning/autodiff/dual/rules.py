# SPDX-License-Identifier: Apache-2.0
"""The table of rules: an operation's tangent from its arguments and theirs.

A rule is called like its operation, with the operation itself first, and returns (value, tangent):
two tensors, or two tuples; the tangent is None where the value is constant. The value is what the
operation gives without tangents, with the same graph. A rule never changes an argument, and its
tangent shares memory with an argument's only where the value does.

Keys are the functions themselves, since another library's function may have the same name.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

Rule = Callable[..., tuple[Any, Any]]


class Unfit(Exception):  # noqa: N818  no error: the form of a call that a rule leaves to forward mode
    """Refusal by a rule, before it does anything, of a call that it does not cover."""


class Entry(NamedTuple):
    """A rule and the calls that it takes.

    Attributes:
        rule: the rule.
        num_positional: arguments that may come by position.
        names: arguments that may come by name.
        num_required: arguments that must come.
    """

    rule: Rule
    num_positional: int
    names: frozenset[str] | None
    num_required: int = 0

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Tell whether the rule takes a call of this form."""
        if len(args) > self.num_positional or len(args) + len(kwargs) < self.num_required:
            return False
        return not kwargs or self.names is None or kwargs.keys() <= self.names


RULES: dict[Any, Entry] = {}
"""Rules by function."""

_NAMESPACES = (torch, torch.Tensor, torch.nn.functional, torch._C._nn, torch.special, torch.fft)


def register(rule: Rule, names: str | Iterable[str]) -> None:
    """Enter a rule for operations that torch has under one of its names, wherever it stands.

    Args:
        rule: the rule.
        names: names of operations, or one text with names between blanks.
    """
    for name in names.split() if isinstance(names, str) else names:
        found = [getattr(space, name) for space in _NAMESPACES if hasattr(space, name)]
        assert found, f"torch has no operation {name}"
        for func in found:
            RULES[func] = entry(rule)


def entry(rule: Rule) -> Entry:
    """Entry of a rule, with the calls it takes read from its signature."""
    parameters = list(inspect.signature(rule).parameters.values())[1:]
    kinds = {each.kind for each in parameters}
    free = inspect.Parameter.VAR_POSITIONAL in kinds
    positional = [each for each in parameters if each.kind == each.POSITIONAL_OR_KEYWORD]
    named = [each for each in parameters if each.kind == each.KEYWORD_ONLY]
    any_name = inspect.Parameter.VAR_KEYWORD in kinds
    names = None if any_name else frozenset(each.name for each in (*positional, *named))
    required = sum(each.default is each.empty for each in (*positional, *named))
    return Entry(rule, 1_000 if free else len(positional), names, required)
