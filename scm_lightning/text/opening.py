# SPDX-License-Identifier: Apache-2.0
"""Choice of an encoder by its name."""

from scm_lightning.given_files import given_path
from scm_lightning.text.encoder import TextEncoder
from scm_lightning.text.pretrained import Transformers
from scm_lightning.text.words import Words


def open_encoder(name: str, max_length: int | None = None, device: str = "cpu") -> TextEncoder:
    """Open an encoder.

    Args:
        name: `words`, or the folder of a pretrained encoder.
        max_length: most tokens of a text; None for the encoder's own.
        device: where a pretrained encoder computes.

    Raises:
        ValueError: if there is no such encoder, or it takes no text of that length.
    """
    if name == "words":
        return Words() if max_length is None else Words(max_length=max_length)
    return Transformers(given_path(name), max_length, device)
