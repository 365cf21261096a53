# SPDX-License-Identifier: Apache-2.0
"""Private names of other libraries are there, and none is used that is not in the list.

A new version may change one without a word. Then the test that fails here says what users lose.
"""

import ast
import importlib
import inspect
import re
from functools import cache
from pathlib import Path

import pytest
from private_names import USES

import scm_lightning

PACKAGE = Path(scm_lightning.__file__).parent
FOREIGN = ("torch", "lightning", "jsonargparse", "webdataset", "torchmetrics")
DOCUMENTED = {"_asdict", "_replace", "_make", "_exit"}
"""Of Python's own named tuples and of `os`."""
NOT_ASKED = {"_abc_impl", "_backward_cls"}
"""What a metaclass gives to every class of its kind."""
ASSIGNED = re.compile(r"self\.(_\w+)(?:: [^=\n]+)? = ")
OF_SELF = re.compile(r"(?:self|super\(\))\.(_\w+)")
TREES = {file: ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize(
    "use", [pytest.param(use, id=f"{names}: {use.breaks}") for names, use in USES.items()]
)
def test_they_are_there_or_users_lose(use):
    """The name of the test says what."""
    assert use.is_there()


def is_private(name):
    return name.startswith("_") and not name.endswith("__") and name not in DOCUMENTED | NOT_ASKED


def own_names():
    """What the package defines itself."""
    own = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own |= {node.attr} if ast.unparse(node.value) in ("self", "cls") else set()
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            own |= {each.id for each in targets if isinstance(each, ast.Name)}
    return own


def named_in(tree):
    """Private names that a file reads of anything, or imports from elsewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Import):
            yield from (part for each in node.names for part in each.name.split("."))
        elif isinstance(node, ast.ImportFrom) and not node.module.startswith("scm_lightning"):
            yield from (*node.module.split("."), *(each.name for each in node.names))


@cache
def source_of(kind):
    try:
        return inspect.getsource(kind)
    except OSError:  # made by a call, as named tuples are
        return ""


def inherited_in(module):
    """Private names of foreign base classes that a module's own classes use or replace."""
    for kind in vars(module).values():
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            for base in kind.__mro__:
                if base.__module__.partition(".")[0] in FOREIGN:
                    theirs = {*vars(base), *ASSIGNED.findall(source_of(base))}
                    yield from theirs & {*vars(kind), *OF_SELF.findall(source_of(kind))}


def test_no_other_private_name_is_used():
    """Each in the files of the list alone."""
    expected = {name: use.files for names, use in USES.items() for name in names.split()}
    found, own = {}, own_names()
    for file, tree in TREES.items():
        place = str(file.relative_to(PACKAGE))
        for name in filter(is_private, named_in(tree)):
            if name not in own or name in expected:
                found.setdefault(name, set()).add(place)
        parts = (PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts)
        if file.stem != "__main__":
            for name in filter(is_private, inherited_in(importlib.import_module(".".join(parts)))):
                found.setdefault(name, set()).add(place)
    found.pop("_C")
    used = {name: " ".join(sorted(files)) for name, files in found.items()}
    assert dict(used.items() - expected.items()) == dict(expected.items() - used.items())
