# SPDX-License-Identifier: Apache-2.0
"""Parsers whose errors are one line, with the option that was meant if it is a near miss.

No option may be cut short: with `sigma` for `sigma_data`, another option of that beginning would
change what a command means. What an option takes as text is never read as a file.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse._typehints import ActionTypeHint

from scm_lightning.cli.completion import known_options
from scm_lightning.cli.misfits import OPTIONS, Misfit, MisfitError, install, note, shown
from scm_lightning.cli.renamed import GONE, place_of_old
from scm_lightning.cli.run_config import FILE, of_its_folder
from scm_lightning.given_files import meant, meant_path

DENIED = ["torch.load", "torch.hub", "torch.jit", "torch.utils.cpp_extension", "webdataset"]
"""Names that no configuration may give, beside those that jsonargparse knows: they run what they
are handed."""
UNKNOWN = re.compile(
    r"(?:Group '([\w.]+)' does not accept )?(?:[Oo]ption '|unrecognized arguments: --)([\w.]+)"
)
MISSING = re.compile(r"following arguments are required: (.*)")
NO_VALUE = re.compile(r"argument ([^:]+): expected .*argument")
NO_FILE = re.compile(r"(?:File does not exist|Path is not a file): '(.*)'")
STRAY = re.compile(r"unrecognized arguments: (-?[^-].*)")
TEXT_FOR_GROUP = re.compile(r"([\w.]+)\"?:\s+Unable to load config ['\"](.*?)['\"]")
"""Messages of the parser about an option that it does not know or that lacks a value, a missing
file and a text for a group of options."""

OF_A_PARSER = re.compile(r"help|config|print_|.*\.")
"""Options that are no class's own."""
MANY = 20
"""Options from which on they are not listed."""
LINK = re.compile(r"Call to compute_fn of link .* failed: ", re.DOTALL)
"""Start of the parser's messages from `link_arguments`: all options of the linked objects."""


def deny_dangerous_names() -> None:
    """Refuse names of functions that run commands or code: os.system, subprocess, pickle and so on.

    A precaution, and no protection from configurations of strangers: a configuration may name any
    class or function that is installed and fits.
    """
    set_parsing_settings(import_path_denylist=DENIED)


class ArgumentError(ValueError):
    """Arguments or a configuration that the parser refuses."""


class CommandParser(ArgumentParser):
    """Parser of the commands that have no model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        install()
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Add the options of a class; those that may be a text take it for what it says.

        The parser reads a value that happens to be a file's name as a configuration of that option,
        wherever an object would do too. Thus a `teacher` could name code instead of holding
        weights, and `strategy: ddp` would depend on there being no file ddp.
        """
        added: list[str] = super().add_class_arguments(*args, **kwargs)
        for action in self._actions:
            if isinstance(action, ActionTypeHint) and _takes_text(action._typehint):
                action._enable_path = False
            if action.dest == "trainer.logger":  # Lightning's text names its own default
                action.help = "logger, or several; null for metrics.csv in the run's folder"
        return added

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse; an option that is true or false may stand without a value, and is true."""
        for action in self._actions:
            if isinstance(action, ActionTypeHint) and action._typehint is bool:
                action.nargs, action.const = "?", True
        return super().parse_args(*args, **kwargs)

    def option_names(self) -> set[str]:
        """Dotted names of all options."""
        return {action.dest for action in self._actions}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the arguments. The line is printed, and the exit code set, by `main`."""
        if isinstance(ex, ArgumentError):
            raise ex
        found = ex.args[0] if isinstance(ex, MisfitError) else self._misfit(LINK.sub("", message))
        note(found)
        raise ArgumentError(f"{found.key} {found.problem}".strip()) from ex

    def _misfit(self, message: str) -> Misfit:
        """The parser's own message, in the words here where it is about an option."""
        if stray := STRAY.search(message):
            return Misfit("", f"an option begins with two dashes, --NAME VALUE, got {stray[1]}")
        if unknown := UNKNOWN.search(message):
            name = ".".join(filter(None, unknown.groups()))
            return Misfit(name, f"is no option{self._meant(name)}")
        if missing := MISSING.search(message):
            first, *others = missing[1].split(", ")
            return Misfit(first, f"{''.join(f'and {each} ' for each in others)}must be given")
        if lacking := NO_VALUE.search(message):
            return Misfit(lacking[1], "needs a value behind it")
        if file := NO_FILE.search(message):
            return Misfit("", _no_file(os.path.relpath(file[1])))
        if text := TEXT_FOR_GROUP.search(message):
            return Misfit(text[1], f"must be {OPTIONS}, got {text[2]}")
        return Misfit("", message)

    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """Refuse what is no map in the place of a group of options: the parser would take it."""
        for key in sorted({*(self.groups or ())}, reverse=True):  # model first
            if key in namespace and not isinstance(value := namespace[key], Namespace):
                needed = "must be given; add --config FILE, which says what it is"
                other = f"must be {OPTIONS}, got {'null' if value is None else shown(value)}"
                is_left_out = value is None and key in ("model", "data")
                raise MisfitError(Misfit(key, needed if is_left_out else other))
        super().validate(namespace, *args, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Read a configuration; an error names its file."""
        try:
            found = super().parse_path(path, *args, **kwargs)
            if (file := Path(path)).is_file():  # not what comes through standard input
                of_its_folder(found, file)
            return found
        except ArgumentError as error:
            raise ArgumentError(f"{path}: {error}") from error

    def _meant(self, name: str) -> str:
        """Present place of an unknown option, or the option that was meant."""
        option = name.removeprefix("model.init_args.").partition(".")[0]
        own = self.option_names()
        if "ema" in own and option not in own and (place := place_of_old(option)):
            return f"; its name is now {place}"
        if gone := GONE.get(name.rpartition(".")[2]):
            return f"; {gone}"
        is_first = any(isinstance(action.choices, dict) for action in self._actions)
        is_whole = is_first or self.prog.startswith("scm ")  # and not the parser of one class
        command = "fit" if is_first else self.prog.rpartition(" ")[2]
        if near := _near_option(name, own | (known_options(command) if is_whole else set())):
            return near
        group = name
        while group and not (group.endswith(".") and any(each.startswith(group) for each in own)):
            group = group[: group.rstrip(".").rfind(".") + 1]
        beside = (each.removeprefix(group) for each in own if each.startswith(group))
        own = {each for each in beside if not OF_A_PARSER.match(each)}
        if 0 < len(own) < MANY and (group or not is_whole):
            return f"; there are {', '.join(sorted(own))}"
        if is_whole:
            return f"; `scm {command} --help-all` lists all of them"
        unnamed = "; the configuration that names the class stands before what changes its options"
        return "" if own else unnamed


def _near_option(name: str, known: set[str]) -> str:
    """The option that was meant, of those of the same depth, or of which it is the end."""
    ends = sorted((each for each in known if each.endswith(f".{name}")), key=len)
    if ends:
        return f"; did you mean {ends[0]}?"
    near = meant(name, (each for each in known if each.count(".") == name.count(".")))
    return near or meant(name, (each for each in known if "." in each), 0.85)


def _no_file(path: str) -> str:
    """Reason why a path names no configuration."""
    if (kept := Path(path) / FILE).is_file():
        return f"{path} is a folder; did you mean {kept}?"
    if Path(path).exists():
        return f"{path} is no file; give a configuration in YAML"
    return f"there is no file {path}{meant_path(path)}"


def _takes_text(kind: Any) -> bool:
    """Tell whether a type is text or a word, or has one among its alternatives or elements."""
    return kind is str or isinstance(kind, str) or any(_takes_text(each) for each in get_args(kind))


def call(command: str, function: Callable[..., object], words: Sequence[str]) -> None:
    """Call a function with its arguments from the command line.

    Args:
        command: subcommand of `scm`.
        function: what it does.
        words: what comes after the subcommand.

    Raises:
        ValueError: if they do not fit.
    """
    parser = CommandParser(prog=f"scm {command}")
    parser.add_function_arguments(function)
    function(**parser.parse_args(list(words)).as_dict())
