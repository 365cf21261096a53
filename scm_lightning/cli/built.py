# SPDX-License-Identifier: Apache-2.0
"""Option from which an object was built that refuses its values."""

import dataclasses
import pkgutil
import traceback
from typing import Any

from jsonargparse import Namespace


def option_of(error: BaseException, config: Namespace) -> str:
    """Find the option that named the object in whose construction an error was raised.

    Args:
        error: what was raised.
        config: options of a subcommand.

    Returns:
        Its key, `model.init_args.student`; empty if there is none, or it is the model, the data or
        the trainer as a whole.
    """
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        if frame.f_code.co_name in ("__init__", "__post_init__"):
            kind = type(frame.f_locals.get("self"))
            for key, value in config.items(branches=True):
                if "." in key and isinstance(value, Namespace) and _is_of(value, kind):
                    return key
    return ""


def _is_of(value: Namespace, kind: type) -> bool:
    """Tell whether a part of a configuration is of a class: by its name, or all of its options."""
    path: Any = value.get("class_path")
    if isinstance(path, str):
        return pkgutil.resolve_name(path) is kind
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    return {each.name for each in fields if each.init} == vars(value).keys() != set()
