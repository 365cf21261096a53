# SPDX-License-Identifier: Apache-2.0
"""YAML in which every key stands once, and that is no longer than it looks.

PyYAML takes the last of two equal keys silently, and anchors that contain each other grow to any
length. The parsers' own way to read a file waits for a pipe, and takes whatever is in it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import Path as GivenPath
from jsonargparse import get_loader, set_loader

from scm_lightning.given_files import read_regular

MAX_BYTES = 2**20
"""Bytes of a file of configuration; the largest has some thousand."""
MAX_NODES = 100_000
"""Values of a configuration with all its anchors written out; the largest has some hundred."""


def install(translate: Callable[[Any], Any]) -> None:
    """Let the parsers read YAML so, from now on; more often than once is no matter.

    Args:
        translate: changes what was read, such as names of an older version.
    """
    load, read_text = get_loader("yaml"), GivenPath.read_text
    if getattr(load, "is_strict", False):
        return

    def read_bounded(path: GivenPath) -> str:
        is_file = not (path.is_url or path.is_fsspec or str(path) == "-")
        return text_of(path.absolute) if is_file else str(read_text(path))

    def strict(text: str) -> object:
        if ":" in text:
            check_keys(text)
        try:
            content = load(text)
        # Of a value that is not what its tag says: !!timestamp x.
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise yaml.YAMLError(f"a value cannot be read: {error}") from error
        return translate(content)

    strict.is_strict = True  # type: ignore[attr-defined]
    set_loader("yaml", strict, (yaml.YAMLError,))
    GivenPath.read_text = read_bounded  # type: ignore[assignment,method-assign]


def read_yaml(file: Path) -> Any:
    """Read a file with the parsers' YAML.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no YAML.
    """
    try:
        return get_loader("yaml")(text_of(file))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} must be a configuration in YAML: {error}; correct it") from error


def text_of(file: str | Path) -> str:
    """Text of a file of configuration, read within bounds.

    Raises:
        ValueError: if it is no text.
    """
    try:
        return read_regular(file, MAX_BYTES).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} must be text in UTF-8: {error}") from error


def check_keys(text: str) -> None:
    """Refuse a key that stands twice in one map, and anchors without end.

    Args:
        text: one YAML document.

    Raises:
        yaml.YAMLError: if it has either, or is no YAML.
    """
    left = [MAX_NODES]

    def visit(node: yaml.Node) -> None:
        left[0] -= 1
        if not left[0]:
            raise _error(node, f"with its anchors it has more than {MAX_NODES} values")
        if isinstance(node, yaml.SequenceNode):
            for each in node.value:
                visit(each)
        elif isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and keys.count(key.value) > 1:
                    raise _error(key, f"the key {key.value} stands twice; take one out")
                visit(value)

    root = yaml.compose(text, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
    try:
        if root is not None:
            visit(root)
    except RecursionError:
        raise _error(root, "its anchors contain themselves, or it is nested too deeply") from None


def _error(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
