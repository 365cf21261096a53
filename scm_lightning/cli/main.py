# SPDX-License-Identifier: Apache-2.0
"""Entry point of `scm`."""

import os
import sys
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import NoReturn

from scm_lightning import __version__
from scm_lightning.cli.early_signals import CommandEnd
from scm_lightning.cli.failures import (
    failed_network,
    first_failure,
    is_out_of_memory,
    kinds,
    one_line,
    reason,
)
from scm_lightning.cli.launcher import follow_launcher
from scm_lightning.cli.screens import HELP, NEEDED, OF_MODELS, mistaken, screen, with_underscores
from scm_lightning.saying import warn

USER_ERRORS = {"ValueError", "OSError", "MisconfigurationException"}
"""Errors of bad input: shown as one line. Anything else is our fault and keeps its trace."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: arguments without the program's name; None for the process's own.

    Raises:
        SystemExit: with code 2 and one line on standard error, if what the user passed does not
            fit.
    """
    words = list(sys.argv[1:] if args is None else args)
    if words in ([], ["-h"], ["--help"]):
        print(HELP, end="")
        return
    if words == ["--version"]:
        print(f"scm_lightning {__version__}")
        return
    if refusal := mistaken(words):
        _refuse(" ".join(refusal.split()))
    if words[0] in OF_MODELS and {"-h", "--help"} & {*words}:
        print(screen(words[0]), end="")
        return
    is_launched = follow_launcher()
    if args is not None:
        _run_in_one_line(words)
        return
    sys.path.append(os.getcwd())  # classes of the user's, as for `python -m`; nothing is shadowed
    end = CommandEnd(is_launched)
    end.install()
    try:
        _run_in_one_line(words)
        end.code = 0
    except SystemExit as error:
        end.code = error.code if isinstance(error.code, int) else 1
        raise


def _run_in_one_line(words: list[str]) -> None:
    """Run a subcommand; what the user can mend is said in one line."""
    try:
        _run(words)
    except Exception as raised:
        error = first_failure(raised)
        if error is not raised:
            warn(f"cleaning up failed as well: {one_line(str(raised) or repr(raised))}")
        if is_out_of_memory(error):
            advice = "lower batch sizes, or those of the network"
            line = f"there is not enough memory: {reason(error)}; {advice}"
        elif network := failed_network(error):
            warn(f"error: {network}")
            raise error  # noqa: B904  the code is the user's
        else:
            line = reason(error) if USER_ERRORS & kinds(error) else ""
        if os.environ.get("SCM_TRACEBACK") or not line:
            raise error  # noqa: B904  with all that is behind it
        _refuse(line)


def _run(words: list[str]) -> None:
    """Import no more than the subcommand needs, and run it."""
    command, *rest = words
    if command == "completion":
        from scm_lightning.cli.completion import script

        print(script(rest), end="")
        return
    from scm_lightning.cli.parsers import call, deny_dangerous_names
    from scm_lightning.cli.renamed import renamed
    from scm_lightning.cli.strict_yaml import install

    install(renamed)
    deny_dangerous_names()
    rest = ["--help" if word == "--help_all" else word for word in map(with_underscores, rest)]
    if command in NEEDED:
        call(command, resolve_name(f"scm_lightning.cli.{command}:{command}"), rest)
    elif command == "ablate":
        from scm_lightning.cli.ablate import ablate

        ablate(rest)
    else:
        from scm_lightning.cli.app import run  # slow: imports torch and lightning
        from scm_lightning.cli.class_help import asked_class, show_class

        if asked := asked_class(rest):
            show_class(*asked)
        else:
            run([command, *rest])


def _refuse(line: str) -> NoReturn:
    warn(f"error: {line}")
    raise SystemExit(2) from None
