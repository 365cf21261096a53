# SPDX-License-Identifier: Apache-2.0
r"""A small encoder of our own that needs no download: one fixed vector for every word.

    text     lower case, Unicode's compatible characters made one; split at all but letters,
             digits and the marks on them
    parts    <cats>, and its pieces of 3 to 5 letters: <ca cat ats ts> <cat cats ats> <cats cats>
    token    normalised sum over the parts p of r(p),     r(p) in {-1, 1}^D, the bits of a hash

Words that share pieces lie near each other, "cats" by "cat"; others are nearly orthogonal, at an
angle whose cosine is about 0 +- 1 / sqrt(D). The hash is that of the letters alone, so a word has
the same vector on every machine and in every run. Each token has a root mean square of 1.

What it cannot do. It knows no meaning: "big" and "large" are as far from each other as any two
words, so a network can draw no word that it was not trained on, unless by its pieces. A token
depends on its word alone, not on its neighbours or its place: "red hat, blue car" and "blue hat,
red car" have the same tokens in another order. Telling places apart is the network's part, by a
code of the place. In scripts without spaces a whole phrase is one word.

Source of the pieces: P. Bojanowski et al., arXiv 1607.04606.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from scm_lightning.text.encoder import Array, TextEncoder

VERSION = 1
"""Version of the algorithm: another one gives other vectors."""
PIECE_LENGTHS = (3, 4, 5)


class Words(TextEncoder):
    """One token per word, hashed from the word and its pieces; see the module for what it is.

    Args:
        width: numbers in a token, a multiple of 8 from 32. More make it rarer that two words are
            alike by chance.
        max_length: most words of a text.

    Raises:
        ValueError: if an argument is out of range.
    """

    units = "words"

    def __init__(self, width: int = 64, max_length: int = 16) -> None:
        if width < 32 or width % 8 or max_length < 1:
            raise ValueError(
                "words need a width that is a multiple of 8 from 32 and a length of at least 1, "
                f"got {width} and {max_length}"
            )
        self.name, self.width, self.max_length = "words", width, max_length
        self.sha256 = hashlib.sha256(f"words {VERSION}".encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Array]:
        """Encode texts; see `TextEncoder.encode`."""
        return [self._tokens(words_of(text)[: self.max_length]) for text in texts]

    def num_tokens(self, text: str) -> int:
        """Number of words of a text."""
        return len(words_of(text))

    def _tokens(self, words: Sequence[str]) -> Array:
        tokens = np.zeros((len(words), self.width), np.float32)
        for token, word in zip(tokens, words, strict=True):
            # A sum of signs is a whole number: exact in any order.
            total = np.sum([_signs(part, self.width) for part in _parts(word)], axis=0)
            token[:] = total * (np.sqrt(self.width) / np.linalg.norm(total))
        return tokens


def words_of(text: str) -> list[str]:
    """Words of a text in their order, in lower case."""
    lowered = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    kept = (each if unicodedata.category(each)[0] in "LNM" else " " for each in lowered)
    return "".join(kept).split()


def _parts(word: str) -> list[str]:
    """The word between marks of its ends, and its pieces, each as often as it occurs."""
    marked = f"<{word}>"
    pieces = [
        marked[start : start + length]
        for length in PIECE_LENGTHS
        for start in range(len(marked) - length + 1)
    ]
    return [marked, *pieces]


def _signs(part: str, width: int) -> Array:
    """Pseudo-random signs that belong to some letters. (width,) of -1 and 1."""
    digest = hashlib.shake_256(part.encode()).digest(width // 8)
    return 2 * np.unpackbits(np.frombuffer(digest, np.uint8)).astype(np.int64) - 1
