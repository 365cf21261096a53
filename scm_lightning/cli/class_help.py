# SPDX-License-Identifier: Apache-2.0
"""`scm fit --model.help UNet`: the options of a class, by its short name or its path.

Any option that names a class takes `.help` behind it, at any depth.
"""

import importlib
import inspect
import itertools
import pkgutil
import re
from argparse import SUPPRESS
from collections.abc import Sequence

from scm_lightning.cli.parsers import CommandParser
from scm_lightning.given_files import meant
from scm_lightning.saying import say, show

PLACES = (
    *(
        f"scm_lightning.{room}"
        for room in ("modules", "networks", "objectives", "sampling", "data", "preparation")
    ),
    *(f"scm_lightning.{room}" for room in ("metrics", "autodiff", "callbacks")),
    "torch.optim",
    "torch.optim.lr_scheduler",
    *(f"lightning.pytorch.{room}" for room in ("callbacks", "loggers", "strategies")),
)
"""Modules whose classes are known by their names alone; of equal names the first is meant."""
HANDED_OVER = {"params", "optimizer"}
"""Arguments that are no options: an optimizer gets the weights, and a schedule the optimizer."""


def asked_class(words: Sequence[str]) -> tuple[str, str] | None:
    """The option and the class that help is asked for; None if it is not.

    Args:
        words: of a command, behind the subcommand.
    """
    for word, following in itertools.pairwise([*words, ""]):
        if found := re.fullmatch(r"--([\w.]+)\.help(?:=(.*))?", word):
            behind = "" if following.startswith("-") else following
            return found[1], behind if found[2] is None else found[2]
    return None


def show_class(option: str, name: str) -> None:
    """Print what can be set of a class; without a name, the names that there are.

    Args:
        option: key of the option that names it.
        name: its short name, or its path.

    Raises:
        ValueError: if there is no such class.
    """
    known = {
        each.__name__: f"{place}.{each.__name__}"
        for place in reversed(PLACES)
        for each in _classes(place)
    }
    if not name:
        rows = ((place, ", ".join(each.__name__ for each in _classes(place))) for place in PLACES)
        show(("place", "classes"), rows)
        return
    path = known.get(name, name)
    try:
        kind = pkgutil.resolve_name(path)
    except Exception as error:  # of any module of the user's
        near = meant(name.rpartition(".")[2], known, 0.6)
        why = f": {error}" if "." in name else ""
        raise ValueError(f"there is no class {name}{why}{near}") from error
    if not inspect.isclass(kind):
        raise ValueError(f"{option}.help takes a class, got {name}, which is none")
    say(f"{path}, below init_args of the option that names it:\n")
    parser = CommandParser(prog="scm", usage=SUPPRESS, add_help=False)
    skipped = HANDED_OVER & {*inspect.signature(kind).parameters}
    parser.add_class_arguments(kind, skip=skipped, fail_untyped=False)
    parser.print_help()


def _classes(place: str) -> list[type]:
    """The public classes of a module."""
    module = importlib.import_module(place)
    names = getattr(module, "__all__", [each for each in dir(module) if not each.startswith("_")])
    return [kind for each in names if inspect.isclass(kind := getattr(module, each))]
