# SPDX-License-Identifier: Apache-2.0
"""Conditions by name that a network takes: what it declares, or what its forward names."""

from collections.abc import Collection
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

from torch import nn

from scm_lightning.core.conditions import MASK

PLACES = ("u", "t", "labels", "guidance", "t_end")
"""Arguments that a network is called with in their order; the last of a flow map alone."""
AUGMENT = "augment"
"""Further argument of a teacher that is told of augmentations."""


@dataclass(frozen=True)
class ConditionNames:
    """Names of the conditions that a network takes.

    Attributes:
        owner: class of the network.
        needed: those that it cannot do without.
        optional: those that it takes if there are some; None if it takes any.
        misplaced: names that its forward has where labels or guidance come.
    """

    owner: str
    needed: Collection[str] = ()
    optional: Collection[str] | None = ()
    misplaced: Collection[str] = ()

    @property
    def takes_none(self) -> bool:
        """Tell whether the network takes no condition by name at all."""
        return not self.needed and self.optional == ()

    def check(self, given: Collection[str]) -> None:
        """Refuse data that lack a condition, or have one that the network does not take.

        Args:
            given: names that the data have.

        Raises:
            ValueError: if the names do not fit.
        """
        known = ", ".join([*self.needed, *(self.optional or ())]) or "none"
        for name in given:
            if name in self.misplaced:
                raise ValueError(
                    f"{self.owner} is called as network(u, t, labels, guidance, {name}=...), but "
                    f"its forward has {name} in the place of one of these; move it behind guidance"
                )
            if self.optional is not None and name not in (*self.needed, *self.optional):
                raise ValueError(
                    f"the data have the condition {name}, but this {self.owner} takes {known}; "
                    "build the network with it, or leave it, or the degradation that makes it, out "
                    "of the data"
                )
        for name in self.needed:
            if name not in given:
                raise ValueError(
                    f"this {self.owner} takes the condition {name}, but the data have "
                    f"{', '.join(given) or 'none'}; prepare data with it, or build the network "
                    "without"
                )


def condition_names(network: nn.Module, two_times: bool = False) -> ConditionNames:
    """Names of the conditions that a network takes.

    Args:
        network: its attribute `condition_names` lists all that it takes, of which masks, which data
            of one length do without, and those in `optional_conditions`, if it has that, may be
            missing; without `condition_names`, the parameters of its forward behind the places are
            taken, of which those with a default may be missing.
        two_times: whether it is called with t_end.
    """
    owner = type(network).__name__
    declared: Any = getattr(network, "condition_names", None)
    if declared is not None:
        optional_names: Any = getattr(network, "optional_conditions", ())
        spared = tuple(n for n in declared if n in optional_names or n.endswith(MASK))
        return ConditionNames(owner, tuple(n for n in declared if n not in spared), spared)
    needed: list[str] = []
    optional: list[str] = []
    misplaced: list[str] = []
    takes_any = False
    parameters = signature(network.forward).parameters.values()
    for place, each in enumerate(parameters):
        if each.kind is Parameter.VAR_KEYWORD:
            takes_any = True
        elif each.kind is Parameter.VAR_POSITIONAL or each.name in (*PLACES, AUGMENT):
            continue
        elif each.kind is not Parameter.KEYWORD_ONLY and place < len(PLACES) - (not two_times):
            misplaced.append(each.name)
        else:
            (needed if each.default is Parameter.empty else optional).append(each.name)
    return ConditionNames(
        owner, tuple(needed), None if takes_any else tuple(optional), tuple(misplaced)
    )
