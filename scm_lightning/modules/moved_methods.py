# SPDX-License-Identifier: Apache-2.0
"""Methods that older versions let subclasses override, and nothing calls any more."""

from collections.abc import Mapping
from typing import Any, ClassVar


class MovedMethods:
    """Base of a class that refuses subclasses with methods of an older version."""

    moved: ClassVar[Mapping[str, str]]
    """Methods of version 0.3.0 that subclasses overrode, and where to do so now."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if moved := sorted(cls.moved.keys() & vars(cls).keys()):
            raise TypeError(
                f"{cls.__name__}.{moved[0]} would not be called: since 0.4.0 it is "
                f"{cls.moved[moved[0]]}; see CHANGELOG.md"
            )
