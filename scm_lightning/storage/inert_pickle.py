# SPDX-License-Identifier: Apache-2.0
"""Pickles read as data: nothing in one is ever called, imported or looked up.

A pickle is a program, and the classes that it names run their own code. Here the instructions of
pickle's protocol 4 are followed by a machine that knows plain values and a table of names, each
with a maker of ours. A name is a key of that table, module and name exactly; there is no attribute,
no prefix and no import. Instructions that plain values do not need are refused.

Traps that are closed: lengths beyond the end of the file, before anything is allocated; an index of
the memo that would make a list of its size; keys that are nested tuples, whose hash overflows the
stack of C, or large numbers of the same hash; a value of some bytes that is used a million times
(`Once`).
Source: Python's pickletools, for the instructions.
"""

import os
import pickletools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

Maker = Callable[[tuple[Any, ...]], Any]
"""From the arguments that a pickle gives to a name, to a value."""
MOST_INSTRUCTIONS = 2_000_000
"""Bound of a pickle's instructions; the largest known has some 200 thousand."""
SHORT = 64
"""Length from which bytes can be used once only; Python itself shares some short ones. Bytes."""
LONGEST_LINE = 1000
"""Bound of a name in protocol 2. Bytes."""
LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
BYTES = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
IGNORED = {"PROTO", "FRAME", "STOP"}
LARGEST_KEY = 1 << 31
"""Largest number that is a key, or a member of a set."""


class Once:
    """Large content that a pickle may use for one thing only: else a small file fills the memory.

    Args:
        content: bytes, or what was made of them.
    """

    def __init__(self, content: Any) -> None:
        self._content = content

    def take(self) -> Any:
        """Hand over the content, and forget it.

        Raises:
            ValueError: if it was taken before.
        """
        if self._content is None:
            raise ValueError("it uses the same bytes for two values")
        content = self._content
        if not (isinstance(content, bytes) and len(content) < SHORT):
            self._content = None
        return content


class Built(ABC):
    """A value of ours that a pickle may complete, once it is there."""

    @abstractmethod
    def build(self, state: Any) -> None:
        """Take the state that the pickle gives.

        Raises:
            ValueError: if such a value has no such state.
        """


@dataclass(frozen=True)
class Global:
    """A name in a pickle, of a class or function; it is never resolved."""

    module: str
    name: str


def read_inert(opened: BinaryIO, makers: Mapping[tuple[str, str], Maker]) -> Any:
    """Read a pickle.

    Args:
        opened: a file, at the beginning of the pickle.
        makers: what stands for each (module, name) that the pickle may hold.

    Returns:
        Numbers, strings, `Once` for bytes, tuples, lists, dictionaries, sets, `Global`, and what
        the makers made.

    Raises:
        ValueError: if the pickle is damaged or holds anything else; the message is the reason
            alone.
    """
    machine = _Machine(makers)
    for count, (opcode, argument, _) in enumerate(
        pickletools.genops(cast(BinaryIO, _Bounded(opened)))
    ):
        if count == MOST_INSTRUCTIONS:
            raise ValueError(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
        machine.follow(opcode.name, argument)
    return machine.result()


class _Bounded:
    """A file that refuses to read beyond its end before it makes room for what it reads."""

    def __init__(self, opened: BinaryIO) -> None:
        self.opened = opened
        self.left = opened.seek(0, os.SEEK_END)
        opened.seek(0)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise ValueError(f"{size:,} bytes should follow where {self.left:,} are left")
        self.left -= size
        return self.opened.read(size)

    def readline(self) -> bytes:
        line = self.opened.readline(LONGEST_LINE)
        self.left -= len(line)
        return line


class _Machine:
    """The stack and the memo of a pickle.

    Args:
        makers: see `read_inert`.
    """

    def __init__(self, makers: Mapping[tuple[str, str], Maker]) -> None:
        self.makers = makers
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        if name in LITERALS:
            self.stack.append(argument)
        elif name in BYTES:
            self.stack.append(Once(argument))
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in ACTIONS:
            ACTIONS[name](self, argument)
        elif name not in IGNORED:
            raise ValueError(f"its instruction {name} is not needed for weights")

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise ValueError("its end leaves other than one value")
        return self.stack[0]

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("an instruction lacks its values")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """Look at the value that an instruction changes, which must be of just that kind."""
        value = self.pop()
        self.stack.append(value)
        if not (isinstance(value, kind) if kind is Built else type(value) is kind):
            raise ValueError(f"it changes a {type(value).__name__} as if it were a {kind.__name__}")
        return value

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise ValueError("an instruction lacks its mark")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def mark(self, _: object) -> None:
        self.marks.append(len(self.stack))

    def memoize(self, index: int | None) -> None:
        value = self.pop()
        self.stack.append(value)
        self.memo[len(self.memo) if index is None else index] = value

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"it asks for value {index}, which it has not kept")
        self.stack.append(self.memo[index])

    def tuple_of(self, num: int) -> None:
        self.stack.append(tuple([self.pop() for _ in range(num)][::-1]))

    def tuple_since_mark(self, _: object) -> None:
        self.stack.append(tuple(self.since_mark()))

    def append(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, flat: list[Any]) -> None:
        if len(flat) % 2:
            raise ValueError("it has a key without a value")
        keys = flat[::2]
        self.top(dict).update(zip(_scalars(keys), flat[1::2], strict=True))

    def add_items(self, _: object) -> None:
        values = self.since_mark()
        self.top(set).update(_scalars(values))

    def frozen_set(self, _: object) -> None:
        self.stack.append(frozenset(_scalars(self.since_mark())))

    def name(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("it has a name that is not text")
        if (module, name) not in self.makers:
            named = repr(f"{module}.{name}"[:80])  # whatever it holds, on one line
            raise ValueError(f"it names {named}, which weights do not need")
        self.stack.append(Global(module, name))

    def stack_name(self, _: object) -> None:
        name = self.pop()
        self.name(self.pop(), name)

    def make(self, _: object) -> None:
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, Global) or type(arguments) is not tuple:
            raise ValueError(f"it calls a {type(called).__name__}")
        self.stack.append(self.makers[called.module, called.name](arguments))

    def build(self, _: object) -> None:
        state = self.pop()
        self.top(Built).build(state)


def _scalars(values: list[Any]) -> list[Any]:
    """Values that can be keys.

    Tuples cannot, whose hash goes as deep as they do, nor numbers that are made to collide.
    """
    for value in values:
        if not isinstance(value, str | int | None) or (
            isinstance(value, int) and abs(value) > LARGEST_KEY
        ):
            raise ValueError(f"it has a {type(value).__name__} as a key")
    return values


ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.memoize),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "TUPLE": _Machine.tuple_since_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozen_set,
    "GLOBAL": lambda machine, both: machine.name(*both.split(" ", 1)),
    "STACK_GLOBAL": _Machine.stack_name,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.make),
    "BUILD": _Machine.build,
}
"""Instructions that work on the stack."""
