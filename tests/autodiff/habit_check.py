# SPDX-License-Identifier: Apache-2.0
"""Habits: small functions written as people write them, each to be run on dual numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from operators import choices, directions
from tangent_check import Judge
from torch import Tensor, nn


@dataclass(frozen=True)
class Habit:
    """What makes the function anew, the shapes of its arguments, and how a call may go."""

    build: Callable[[], tuple[Callable[..., object], Sequence[Tensor]]]
    shapes: Sequence[tuple[int, ...]]
    expect: tuple[str, ...]


class Habits(dict[str, Habit]):
    """A register of habits by name, filled by decorators."""

    def function(self, *shapes: tuple[int, ...], expect: str = "exact") -> Callable[..., object]:
        """Register a function of tensors of these shapes."""

        def register(function: Callable[..., object]) -> Callable[..., object]:
            given = shapes or ((3, 4),)
            self[function.__name__] = Habit(lambda: (function, ()), given, tuple(expect.split()))
            return function

        return register

    def module(self, *shapes: tuple[int, ...], expect: str = "exact") -> Callable[..., object]:
        """Register a function that builds a module, whose weights and buffers are compared too."""

        def register(make: Callable[[], nn.Module]) -> Callable[..., object]:
            def build() -> tuple[Callable[..., object], Sequence[Tensor]]:
                torch.default_generator.manual_seed(1)
                made = make().double()
                return made, [*made.parameters(), *made.buffers()]

            self[make.__name__] = Habit(build, shapes or ((3, 4),), tuple(expect.split()))
            return make

        return register

    def check(self, name: str) -> None:
        """Run one habit with all its arguments dual, the first alone, and the others alone."""
        habit = self[name]
        generator = torch.Generator().manual_seed(0)
        leaves = [
            torch.randn(shape, dtype=torch.float64, generator=generator) for shape in habit.shapes
        ]
        judge = Judge(habit.build, leaves, directions(leaves))
        for chosen in choices(len(leaves)):
            verdict = judge(chosen)
            assert verdict.outcome in habit.expect, f"dual {chosen}: {verdict}"


class Calling(nn.Module):
    """A module of parts and a function of them: `Calling(lambda self, x: ..., part=...)`."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *x):
        return self.function(self, *x)
