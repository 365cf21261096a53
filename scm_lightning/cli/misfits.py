# SPDX-License-Identifier: Apache-2.0
"""Faults of a value: noted where its key, the type it must have and the value itself are known.

The parser reads a class's options with a parser of its own, and one that may be of several types
as each of them in turn. So every value that does not fit is noted where it is found; the note of
the innermost is the one that is shown, under its whole key.
"""

import collections.abc
import inspect
import pkgutil
import re
from collections.abc import Collection, Iterator
from dataclasses import is_dataclass
from functools import wraps
from typing import Any, Literal, NamedTuple, get_args, get_origin

from jsonargparse import Namespace
from jsonargparse._typehints import ActionTypeHint
from jsonargparse._util import NestedArg

from scm_lightning.cli.renamed import MOVED_CLASSES
from scm_lightning.given_files import meant

MAX_VALUE = 100
"""Letters of a value that a message repeats."""
OPTIONS = "its options by name, {NAME: VALUE, ...}"
SPEC = ("class_path", "init_args", "dict_kwargs")
NUMBER = re.compile(r"[\d.]+e\+?\d+")
WORDS = {
    int: "an int",
    float: "a float",
    bool: "true or false",
    str: "text",
    dict: "a map",
    type(None): "null",
}


class Misfit(NamedTuple):
    """A value that does not fit.

    Attributes:
        key: its key, below the value in which it was found.
        problem: what must hold, and what came.
    """

    key: str
    problem: str


class _Null(str):
    """The word null, which the parser reads in the inner option alone: else it hands on `None`."""


class MisfitError(TypeError):
    """The parser's own refusal of a value; `args` holds the misfit."""


_noted: list[list[Misfit]] = []
"""Misfits inside of every value that is being read, the outermost first."""


def note(misfit: Misfit) -> None:
    """Note what is wrong inside the value that is being read, if any is."""
    if _noted:
        _noted[-1].append(misfit)


def install() -> None:
    """Let the parser's check of a type note what does not fit; twice is no matter."""
    check: Any = ActionTypeHint._check_type
    if hasattr(check, "__wrapped__"):
        return

    @wraps(check)
    def checked(action: ActionTypeHint, value: Any, *args: Any, **kwargs: Any) -> Any:
        inner: list[Misfit] = []
        _noted.append(inner)
        if isinstance(value, NestedArg) and value.val in (None, "null"):
            value = value._replace(val=_Null("null"))
        try:
            return _without_word(check(action, value, *args, **kwargs))
        except (TypeError, ValueError) as error:
            found = _misfit(action.dest, action._typehint, value, inner, error)
        finally:
            _noted.pop()
        note(found)
        raise MisfitError(found)

    ActionTypeHint._check_type = checked  # type: ignore[method-assign,assignment]


def _without_word(found: Any) -> Any:
    """A value as it is, with null in the place of the word, where an option would take a text."""
    if isinstance(found, Namespace):
        for key, each in list(found.items()):
            if isinstance(each, _Null):
                found[key] = None
    return None if isinstance(found, _Null) else found


def _misfit(key: str, hint: Any, value: Any, inner: list[Misfit], error: Exception) -> Misfit:
    given = value.as_dict() if isinstance(value, Namespace) else value
    if isinstance(given, dict) and "class_path" in given and (more := given.keys() - {*SPEC}):
        near = meant(min(more), SPEC)
        return Misfit(key, f"takes {', '.join(SPEC)}, got {', '.join(sorted(more))}{near}")
    kinds = tuple(dict.fromkeys(_kinds(hint)))
    options = given.val if isinstance(given, NestedArg) and given.key == "init_args" else {}
    if isinstance(given, dict) and kinds and {*given} <= {*SPEC}:
        options = given.get("init_args", {})
    if not isinstance(options, dict | Namespace):
        return Misfit(f"{key}.init_args", f"must be {OPTIONS}, got {shown(options)}")
    if inner:
        deepest = max(inner, key=lambda each: each.key.count("."))
        if not deepest.key:  # the parser's own words
            return Misfit(f"{key}:", deepest.problem)
        between = "." if any(is_dataclass(kind) for kind in kinds) else ".init_args."
        return Misfit(f"{key}{between}{deepest.key}", deepest.problem)
    if isinstance(given, NestedArg):
        if given.key != "class_path":
            return Misfit(f"{key}.{given.key}", f"cannot be {shown(given.val)}: {error}")
        given = {"class_path": given.val}
    if isinstance(given, str) and str(error.__cause__).startswith(given):  # of a file that it names
        return Misfit(key, f"cannot be read: {error.__cause__}")
    if "import path denylist" in str(error):
        return Misfit(key, f"must not name what runs what it is handed, got {shown(given)}")
    for each in given if isinstance(given, list) else [given]:
        if problem := _of_class(each, kinds):
            return Misfit(key, problem)
    words, how = _words(hint), ""
    if isinstance(given, str):
        how = meant(given, _literals(hint), 0.6) or _near_class(given, kinds)
    if hint is int and isinstance(given, str) and NUMBER.fullmatch(given):
        how = "; write out all of its digits"
    if not how and words.startswith("a class"):
        how = "; name one by class_path, beside its init_args"
    return Misfit(key, f"must be {words}, got {shown(given)}{how}")


def _of_class(value: Any, kinds: tuple[type, ...]) -> str | None:
    """Reason why a value names none of the classes allowed here; None if it names no class."""
    path: Any = value.get("class_path") if isinstance(value, dict) else value
    is_path = isinstance(path, str) and re.fullmatch(r"[A-Za-z_][\w.]*\w", path)
    if not kinds or not is_path or ("." not in path and path is value):
        return None
    must = f"must name a class of the kind {' or '.join(kind.__name__ for kind in kinds)}"
    try:
        kind = pkgutil.resolve_name(path)
    except Exception as error:  # of any module of the user's
        return f"{must}, got {path}: {error}{_near_class(path, kinds)}"
    if not (inspect.isclass(kind) and issubclass(kind, kinds)):
        return f"{must}, got {path}, which is none"
    if inspect.isabstract(kind):
        return f"{must}, got {path}, which is abstract; name one that is derived from it"
    return None


def _near_class(path: str, kinds: tuple[type, ...]) -> str:
    """The class that was meant, of those in the same place, and of all that are known."""
    if path in MOVED_CLASSES:
        return f"; it is {MOVED_CLASSES[path]} now"
    place, _, name = path.rpartition(".")
    classes: list[Any] = [each for kind in kinds for each in _subclasses(kind)]
    likeness = 0.6
    try:
        classes += vars(pkgutil.resolve_name(place)).values() if place else ()
    except Exception:  # of any module of the user's: only its name may be wrong
        likeness = 1.0
    names = [each.__name__ for each in filter(inspect.isclass, classes) if issubclass(each, kinds)]
    return meant(name, (each for each in names if not each.startswith("_")), likeness)


def _subclasses(kind: type) -> Iterator[type]:
    known: list[type] = type.__subclasses__(kind)
    for each in known:
        yield each
        yield from _subclasses(each)


def _literals(hint: Any) -> list[str]:
    """The words that a type takes."""
    if get_origin(hint) is Literal:
        return [str(each) for each in get_args(hint)]
    parts = (each for each in get_args(hint) if not isinstance(each, list))
    return [word for each in parts for word in _literals(each)]


def _kinds(hint: Any) -> Iterator[type]:
    """Classes that a type names, or that a function of that type makes."""
    if inspect.isclass(hint) and not get_args(hint):
        is_plain = hint in WORDS or hint.__module__ in ("builtins", "typing")
        if not (is_plain or getattr(hint, "_is_protocol", False)):  # which may have no subclasses
            yield hint
    elif get_origin(hint) not in (Literal, tuple):
        for each in get_args(hint):
            if not isinstance(each, list):
                yield from _kinds(each)


def _words(hint: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), [x for x in get_args(hint) if not isinstance(x, list)]
    if origin is dict and is_dataclass(arguments[-1]):
        return f"a map, each {_words(arguments[-1])}"
    if words := WORDS.get(origin or hint):
        return words
    if origin is collections.abc.Callable and get_origin(arguments[-1]) is tuple:
        return "a function, or a class whose objects are called"
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if is_dataclass(hint):
        return OPTIONS
    if origin is None and inspect.isclass(hint):
        return f"a class of the kind {hint.__name__}"
    if inspect.isclass(origin) and issubclass(origin, Collection):
        is_counted = origin is tuple and ... not in arguments
        count = f" of {len(arguments)}" if is_counted else ""
        return f"a list{count}, each {_words(arguments[0])}"
    alternatives = dict.fromkeys(_words(each) for each in arguments)
    return " or ".join(alternatives) or str(hint)


def shown(value: Any) -> str:
    """A value as a message repeats it."""
    return str(value)[:MAX_VALUE]
