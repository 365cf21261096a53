# SPDX-License-Identifier: Apache-2.0
"""Captions of the images of a source, and their tokens: the condition `text` of shards."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scm_lightning.data.prompts import TEXT
from scm_lightning.data.shards import Array
from scm_lightning.data.stored_conditions import StoredCondition, write_null
from scm_lightning.saying import say
from scm_lightning.text import TextEncoder

DTYPE = "float16"


class Captions:
    """One caption for every image of a source, and what encodes them.

    Args:
        texts: captions in the order of the images.
        names: names of the images, for messages.
        encoder: encoder of the captions.

    Attributes:
        settings: everything that the stored tokens depend on, as values of JSON.

    Raises:
        ValueError: if a caption holds nothing that could be encoded.
    """

    def __init__(self, texts: Sequence[str], names: Sequence[str], encoder: TextEncoder) -> None:
        self.texts, self.encoder = texts, encoder
        lengths = np.array([encoder.num_tokens(text) for text in texts])
        if (empty := np.flatnonzero(lengths == 0)).size:
            first = empty[0]
            raise ValueError(
                f"every caption must have {encoder.units} in it, got {len(empty)} without of "
                f"{len(texts):,}, first {texts[first]!r:.40} of {names[first]}; describe the "
                "image, or leave it out"
            )
        if (long := np.flatnonzero(lengths > encoder.max_length)).size:
            longest = long[np.argmax(lengths[long])]
            say(
                f"{len(long):,} of {len(texts):,} captions are cut off behind "
                f"{encoder.max_length} {encoder.units}; the longest has {lengths[longest]}, that "
                f"of {names[longest]} (text_length changes it)"
            )
        self._lengths = np.minimum(lengths, encoder.max_length)
        self.settings: Mapping[str, Any] = {
            "captions": hashlib.sha256(json.dumps([*texts]).encode()).hexdigest(),
            "text_encoder_weights": encoder.sha256,
            "text_width": encoder.width,
            "text_length": encoder.max_length,
            "text_device": encoder.device,
        }

    def encode(self, numbers: Sequence[int]) -> list[Array]:
        """Tokens of the captions of some images, as they are stored: (L, width) float16 each.

        Raises:
            ValueError: if one is not finite in that type.
        """
        with np.errstate(over="ignore"):
            texts = [self.texts[number] for number in numbers]
            encoded = [tokens.astype(DTYPE) for tokens in self.encoder.encode(texts)]
        if not all(np.isfinite(tokens).all() for tokens in encoded):
            raise ValueError(
                f"tokens must be finite in {DTYPE}, got others from {self.encoder.name}; give "
                "another text encoder"
            )
        return encoded

    def declared(self, folder: Path) -> StoredCondition:
        """Declare the condition for the index, and write what stands for no text.

        That is the empty text: with `words` no tokens at all, else those that the encoder adds.

        Args:
            folder: folder of the shards.
        """
        encoder, null = self.encoder, self.encoder.encode([""])[0].astype(DTYPE)
        return StoredCondition(
            shape=(encoder.max_length, encoder.width),
            dtype=DTYPE,
            varying=True,
            null_sha256=write_null(folder, TEXT, null) if len(null) else "",
            encoder=encoder.name,
            encoder_sha256=encoder.sha256,
        )

    def num_bytes(self, numbers: Sequence[int]) -> int:
        """Size of the tokens and captions of some images, without headers and padding."""
        tokens = int(self._lengths[list(numbers)].sum()) * self.encoder.width
        characters = sum(len(self.texts[number].encode()) for number in numbers)
        return tokens * np.dtype(DTYPE).itemsize + characters
