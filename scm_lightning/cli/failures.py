# SPDX-License-Identifier: Apache-2.0
"""Failures in one line: which error of several, in whose words, and of whose network."""

import re
import traceback
from contextlib import suppress
from typing import Any

from scm_lightning.given_files import meant_path

CLEANING_UP = {"_interrupt", "_teardown"}
"""Functions of Lightning's that clean up when a run has failed."""
LIBRARIES = ("scm_lightning", "torch", "lightning")
MAX_LINE = 2000
"""Letters of a message; of a longer one, both ends."""
PLAINER = (
    (r'Parser key "([^"]*)":?', r"\1:"),
    (r'in "<unicode string>", ', "at "),
    (r" To accept subclasses use set_parsing_settings\(.*?\)\.", ""),
)
"""Phrases in the parser's messages, and what to say in their place."""


def reason(error: BaseException) -> str:
    """Message of an error, in one line, for the user to mend it.

    Args:
        error: what ended a command.
    """
    error = said_first(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        advice = meant_path(error.filename) if isinstance(error, FileNotFoundError) else ""
        return one_line(f"{error.filename}: {error.strerror}{advice}")
    return one_line(str(error)) or type(error).__name__


def said_first(error: BaseException) -> BaseException:
    """First of the errors that the parser gathers from all types of a value: it says why.

    Where an object may be a text as well, the parser's own "Expected a <class 'str'>" says nothing.
    """
    while str(error).startswith("Does not validate against any") and error.__cause__ is not None:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        gathered = frame.f_locals.get("exceptions", [])
        says = (each for each in gathered if not str(each).startswith("Expected a <class"))
        error = next(says, error.__cause__)
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory of the CPU or a GPU is missing; torch has types for the latter."""
    return bool(kinds(error) & {"MemoryError", "OutOfMemoryError"}) or "can't allocate" in str(
        error
    )


def kinds(error: BaseException) -> set[str]:
    """Names of an error's classes, of which some can be imported with torch only."""
    return {each.__name__ for each in type(error).__mro__}


def first_failure(error: BaseException) -> BaseException:
    """Find what ended a run, where Lightning's cleaning up after it has failed as well.

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


def failed_network(error: BaseException) -> str | None:
    """Name the user's network that raised an error, and what it was given.

    Args:
        error: what was raised.

    Returns:
        One line to stand before the traceback; None if no such network is in it, or if this package
        has raised the error to explain it.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or _library(frames[-1].f_globals) == "scm_lightning":
        return None
    for frame in frames:
        code, owner = frame.f_code, frame.f_locals.get("self")
        if code.co_name == "forward" and owner and _library(frame.f_globals) not in LIBRARIES:
            names = code.co_varnames[1 : code.co_argcount]
            given = (f"{name} {_described(frame.f_locals.get(name))}" for name in names)
            network = f"{type(owner).__module__}.{type(owner).__qualname__}"
            return one_line(f"the network {network} failed, given {', '.join(given)}: {error}")
    return None


def _library(module: dict[str, Any]) -> str:
    return str(module.get("__name__")).partition(".")[0]


def _described(value: Any) -> str:
    """Shape and type of a tensor, and the least and largest of whole numbers, such as labels."""
    if not hasattr(value, "dtype"):
        return str(value)
    described = f"{(*value.shape,)} {str(value.dtype).removeprefix('torch.')}"
    with suppress(Exception):  # of a GPU that has failed, or of no numbers
        if not value.is_floating_point():
            return f"{described} from {int(value.min())} to {int(value.max())}"
    return described


def one_line(message: str) -> str:
    """Put a message on one line that does not steer the terminal, whatever a file says."""
    line = " ".join(message.split())
    for said, meant in PLAINER:
        line = re.sub(said, meant, line)
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
    is_long = len(line) > MAX_LINE
    return f"{line[: MAX_LINE // 2]} ... {line[-MAX_LINE // 2 :]}" if is_long else line
