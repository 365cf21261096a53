# SPDX-License-Identifier: Apache-2.0
"""Encoder of text: what `scm prepare` stores of a caption, and `scm predict` makes of a prompt."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray[Any, Any]


class TextEncoder(ABC):
    """Encoder of texts to sequences of vectors.

    Attributes:
        name: `words`, or the folder of a pretrained one.
        width: numbers in the vector of a token.
        max_length: most tokens of a text; the rest of a longer one is cut off.
        sha256: checksum of what the vectors depend on: weights, or the version of an algorithm.
            Encoders of one checksum and width give a text the same vectors.
        device: where it computes; the last bits may depend on it.
        units: name of what is counted, for messages.
    """

    name: str
    width: int
    max_length: int
    sha256: str
    device: str = "cpu"
    units: ClassVar[str] = "tokens"

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Array]:
        """Encode texts.

        Args:
            texts: any number of them.

        Returns:
            For each its tokens in order. (L, width) float32, L at most `max_length`.
        """

    @abstractmethod
    def num_tokens(self, text: str) -> int:
        """Number of tokens of a text as a whole, before anything is cut off.

        0 if there is nothing in it that could be encoded.
        """
