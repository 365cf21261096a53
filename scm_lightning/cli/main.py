# SPDX-License-Identifier: Apache-2.0
"""Entry point of `scm`."""

import os
import re
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from pkgutil import resolve_name
from typing import NoReturn

from scm_lightning import __version__
from scm_lightning.cli.early_signals import CommandEnd
from scm_lightning.cli.launcher import follow_launcher
from scm_lightning.saying import warn

FUNCTIONS = ("reconstruct", "export", "prepare")
"""Subcommands that are functions, in files of their names, of what is typed."""
SUBCOMMANDS = ("fit", "validate", "test", "predict", "bench", "ablate", *FUNCTIONS)
CLEANING_UP = {"_interrupt", "_teardown"}
"""Functions of Lightning's that clean up when a run has failed."""
MAX_LINE = 2000
"""Letters of a message; of a longer one, both ends."""
PLAINER = (
    (r'Parser key "([^"]*)":?', r"\1:"),
    (r'in "<unicode string>", ', "at "),
    (r" To accept subclasses use set_parsing_settings\(.*?\)\.", ""),
)
"""What the parser says where its own words pass, and what it means."""
HELP = f"""\
usage: scm [-h] [--version]
           {{{",".join(SUBCOMMANDS)}}} ...

scm_lightning {__version__}: continuous-time consistency models, from training to samples.

  scm prepare  --source PATH --out FOLDER
                               shards of a set of images: folders, archives, ImageNet, CIFAR-10
  scm fit      --config FILE   train a teacher or a student; writes checkpoints and logs
  scm validate --config FILE   draw a few samples and log their distance
  scm test     --config FILE   draw samples, print the table of scores, write metrics.json
  scm predict  --config FILE   draw samples, write pictures and samples.npz
  scm bench    --config FILE   time, memory and FLOPs of its training step, by every method;
                               with --dry-run, what the run would need, without a GPU
  scm ablate   --config FILE   train and score variants over seeds; one table, one plot
  scm reconstruct --run FOLDER --sigma_rel WIDTH --out FILE
                               averaged weights of another width, from the snapshots of a run
  scm export   --checkpoint FILE --out FILE.safetensors
                               the averaged network of a checkpoint, to sample from or to teach

Every key of a configuration is an option too: --trainer.max_steps 100, --data.init_args.batch_size
64. --config can be given several times; later files and options win. scm SUBCOMMAND --help lists
all options, scm SUBCOMMAND --config FILE --print_config shows what they come to.
SCM_TRACEBACK=1 in the environment shows the traceback of an error.
"""


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
    if words[0] not in SUBCOMMANDS:
        _refuse(_not_a_subcommand(words[0]))
    is_launched = follow_launcher()
    if args is not None:
        _run_in_one_line(words)
        return
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
    from scm_lightning.cli.app import USER_ERRORS  # slow: imports torch and lightning
    from scm_lightning.cli.parsers import ArgumentError, deny_dangerous_names
    from scm_lightning.cli.renamed import renamed
    from scm_lightning.cli.strict_yaml import install

    install(renamed)
    deny_dangerous_names()
    try:
        _run(words)
    except Exception as raised:
        error = first_failure(raised)
        if error is not raised:
            warn(f"cleaning up failed as well: {one_line(str(raised) or repr(raised))}")
        is_known = isinstance(error, USER_ERRORS) or _is_out_of_memory(error)
        if os.environ.get("SCM_TRACEBACK") or not is_known:
            raise error  # noqa: B904  with all that is behind it
        line = one_line(str(_reason(error)))
        if _is_out_of_memory(error):
            line = f"there is not enough memory: {line}; lower batch sizes, or those of the network"
        elif isinstance(error, ArgumentError):
            line += "; `scm SUBCOMMAND --help` lists what can be set"
        _refuse(line)


def _run(words: list[str]) -> None:
    """Import no more than the subcommand needs, and run it."""
    # A flag as people type it; the parser wants the name of the argument, and a value.
    command, *rest = ("--dry_run=true" if word == "--dry-run" else word for word in words)
    if command in FUNCTIONS:
        from scm_lightning.cli.parsers import call

        call(command, resolve_name(f"scm_lightning.cli.{command}:{command}"), rest)
    elif command == "ablate":
        from scm_lightning.cli.ablate import ablate

        ablate(rest)
    else:
        from scm_lightning.cli.app import run

        run([command, *rest])


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the CPU or of a GPU is what is missing; torch has types for the latter."""
    kinds = {each.__name__ for each in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "can't allocate" in str(error)


def first_failure(error: BaseException) -> BaseException:
    """What ended a run, where Lightning's cleaning up after it has failed as well.

    Args:
        error: what was raised at last.

    Returns:
        The first; `error` itself if that does not come from cleaning up, or is said to explain it.
    """
    places = {frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)}
    before = error.__context__
    if before is None or not places & CLEANING_UP:
        return error
    first = first_failure(before)
    return error if error.__suppress_context__ and not isinstance(first, SystemExit) else first


def _refuse(line: str) -> NoReturn:
    warn(f"error: {line}")
    raise SystemExit(2) from None


def _not_a_subcommand(word: str) -> str:
    if word.startswith("-"):
        return f"the subcommand comes first, got {word!r}: scm fit {word} ..."
    near = get_close_matches(word, SUBCOMMANDS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"invalid choice: {word!r} (choose from {', '.join(SUBCOMMANDS)}){hint}"


def _reason(error: BaseException) -> BaseException:
    """What the parser gathers from all types that a value may have: the first of them says why."""
    while str(error).startswith("Does not validate against any") and error.__cause__ is not None:
        error = error.__cause__
    return error


def one_line(message: str) -> str:
    """Put a message on one line that does not steer the terminal, whatever a file says."""
    line = " ".join(message.split())
    for said, meant in PLAINER:
        line = re.sub(said, meant, line)
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
    is_long = len(line) > MAX_LINE
    return f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}" if is_long else line
