# SPDX-License-Identifier: Apache-2.0
"""Words as hashed vectors: what they keep apart, what lies near, and that they never change."""

import hashlib

import numpy as np
import pytest

from scm_lightning.text import Words
from scm_lightning.text.words import words_of


def token(word: str, width: int = 64) -> np.ndarray:
    (tokens,) = Words(width).encode([word])
    assert tokens.shape == (1, width)
    return tokens[0]


def cosine(first: str, second: str, width: int = 1024) -> float:
    return float(token(first, width) @ token(second, width)) / width


def test_the_vectors_are_those_of_version_1():
    """Prompts are encoded as the captions of stored shards: signs are bits of SHAKE-256."""
    assert Words().sha256.startswith("09a1f585ca14d8eb")
    parts = ["<cat>", "<cat>", "<ca", "cat", "at>", "<cat", "cat>"]
    bits = [f"{int.from_bytes(hashlib.shake_256(p.encode()).digest(8), 'big'):064b}" for p in parts]
    total = [sum(2 * int(bit) - 1 for bit in column) for column in zip(*bits, strict=True)]
    np.testing.assert_allclose(token("cat") * abs(token("cat")).min() ** -1, total, rtol=1e-6)
    assert total[:8] == [3, 3, 5, -1, 1, 3, 3, -3]


def test_tokens_have_unit_power_and_the_order_of_the_words():
    (both,) = Words().encode(["Red CAR, red"])
    assert both.dtype == np.float32
    np.testing.assert_allclose((both**2).mean(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(both, np.stack([token("red"), token("car"), token("red")]))


def test_the_cosine_is_that_of_the_shared_pieces():
    """In expectation over the hash: common pieces over the root of both numbers of pieces."""
    # <cat>: itself twice (of 5 letters), <ca cat at>, <cat cat>; <cats> shares <ca cat <cat.
    cat, cats = 4 + 3 + 2, 1 + 4 + 3 + 2
    expected = 3 / np.sqrt(cat * cats)
    assert cosine("cat", "cats", 2**17) == pytest.approx(expected, abs=0.02)


def test_words_without_shared_pieces_are_unrelated_whatever_they_mean():
    assert abs(cosine("big", "large", 2**17)) < 0.02


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Smiling Face with Heart-Eyes", ["smiling", "face", "with", "heart", "eyes"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("caf\u00e9 cafe\u0301", ["caf\u00e9", "caf\u00e9"]),
        ("हिन्दी 日本語", ["हिन्दी", "日本語"]),
        ("4x4 _under_score", ["4x4", "under", "score"]),
        ("\uff26\uff35\uff2c\uff2c", ["full"]),
        ("!!! ... \U0001f600", []),
        ("", []),
    ],
)
def test_words_are_letters_digits_and_their_marks(text, words):
    assert words_of(text) == words
    assert Words().num_tokens(text) == len(words)


def test_a_longer_text_is_cut_off_and_its_length_told():
    encoder = Words(max_length=2)
    (tokens,) = encoder.encode(["one two three"])
    np.testing.assert_array_equal(tokens, np.stack([token("one"), token("two")]))
    assert encoder.num_tokens("one two three") == 3
    assert encoder.encode([""])[0].shape == (0, 64)


@pytest.mark.parametrize("options", [{"width": 36}, {"width": 16}, {"max_length": 0}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match="a multiple of 8 from 32 and a length of at least 1"):
        Words(**options)
