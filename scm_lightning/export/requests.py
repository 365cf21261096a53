# SPDX-License-Identifier: Apache-2.0
"""Words of a user to what a network is told: class names to numbers, texts to tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scm_lightning.core.conditions import NULL_LABEL, Conditions
from scm_lightning.data.index import ShardIndex
from scm_lightning.data.prompts import TEXT, encoder_of
from scm_lightning.given_files import meant

MOST_LISTED = 20
"""Class names that a message lists."""
LIKENESS = 0.6
"""Share of the letters of a class that a mistyped one has: names are short."""


def labels_of(
    given: int | str | Sequence[int | str] | None, names: Sequence[str], has_texts: bool = False
) -> list[int] | None:
    """Numbers of classes.

    Args:
        given: classes by name or number, -1 for no class; None for all in turn.
        names: names of all classes; none of a network without classes.
        has_texts: whether samples are drawn by texts, which stand in the place of a class.

    Returns:
        Numbers; None for a network without classes.

    Raises:
        ValueError: if there is no such class.
    """
    if not names:
        if given is not None:
            raise ValueError(f"this network has no classes, got {given!r:.40}; leave them out")
        return None
    if given is None:
        return [NULL_LABEL] if has_texts else [*range(len(names))]
    listed = [given] if isinstance(given, int | str) else list(given)
    if not listed:
        raise ValueError("classes must be names or numbers, got none; leave them out for all")
    return [_number(each, names) for each in listed]


def _number(given: int | str, names: Sequence[str]) -> int:
    """Number of a class; a name that is a number is that name first."""
    if isinstance(given, str) and given in names:
        return names.index(given)
    text = str(given)
    if text.lstrip("-").isdecimal() and NULL_LABEL <= int(text) < len(names):
        return int(text)
    listed = ", ".join(names[:MOST_LISTED]) + (", ..." if len(names) > MOST_LISTED else "")
    near = "" if text.lstrip("-").isdecimal() else meant(text, names, LIKENESS)
    raise ValueError(f"there is no class {text:.60}{near}; the {len(names)} classes are {listed}")


def encoded(
    texts: Sequence[str], data: ShardIndex | None, folder: str | None = None
) -> dict[str, Tensor]:
    """Conditions that texts become, encoded as the captions of the data were.

    Args:
        texts: the texts.
        data: index of the data; None if not known.
        folder: folder of the encoder; None for the one in the index.

    Raises:
        ValueError: if the data have no text, the encoder is not there, or a text has no words.
    """
    if not texts:
        return {}
    if data is None or TEXT not in data.conditions:
        raise ValueError(f"this network draws by no text, got {texts[0]!r:.40}; leave it out")
    encoder, stored = encoder_of(data, folder), data.conditions[TEXT]
    for text in texts:
        if not encoder.num_tokens(text):
            raise ValueError(f"every text must have {encoder.units} in it, got {text!r:.40}")
    tokens = [np.asarray(each, stored.dtype) for each in encoder.encode(texts)]
    return stored.batched(TEXT, tokens)


def again(rows: Tensor, n: int) -> Tensor:
    """Rows again and again from the first, up to a number."""
    return rows[torch.arange(n) % len(rows)]


def rows_of(whole: Conditions, numbers: range, device: torch.device) -> Conditions:
    """Conditions of a batch, on a device."""
    chosen = slice(numbers.start, numbers.stop)
    labels = None if whole.labels is None else whole.labels[chosen].to(device)
    return Conditions(labels, {name: x[chosen].to(device) for name, x in whole.named.items()})
