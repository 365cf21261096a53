# SPDX-License-Identifier: Apache-2.0
"""Share of samples whose nearest real image has one of the words that were asked for."""

from types import SimpleNamespace

import pytest
import torch

from scm_lightning.callbacks.word_match import word_match

PLACES = [[0.1, 0], [9, 1], [1.0, 8], [1, 1]]
"""Features of samples 3, 1, 0, 2: next to training images 0, 1, 2, 0."""


def scored(captions, texts):
    """Scores of the four samples beside three training images, the last one as often as needed."""
    more = [[0.0, 10]] * (len(captions) - 2)
    reference = SimpleNamespace(features=torch.tensor([[0.0, 0], [10, 0], *more]))
    drawn = SimpleNamespace(
        reference=reference,
        indices=[torch.tensor([3, 1]), torch.tensor([0, 2])],
        features=[torch.tensor(PLACES[:2]), torch.tensor(PLACES[2:])],
    )
    return word_match(drawn, texts, captions)


def test_the_nearest_image_decides_by_any_word_it_shares():
    """Two of four texts share a word; chance is a mean over orders."""
    texts = {0: "a blue hat", 1: "DOG", 2: "the cat", 3: "bird"}
    found = scored(["Red cat!", "blue dog", "green bird"], texts)
    assert found["word_match"] == (0.5, 4)
    orders = torch.Generator().manual_seed(0)
    # Texts of samples 0, 1, 2, 3 by the images next to 0, 1, 2, 3: bird, dog, cat, cat.
    fits = torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]])
    shares = [fits[torch.randperm(4, generator=orders), range(4)].sum() / 4 for _ in range(16)]
    assert found["word_match_shuffled"] == (float(sum(shares) / 16), 4)


def test_rare_words_alone_count_in_the_strict_score():
    """`face` is in every caption; 0 and 2 have nothing rarer, 1 has it right, 3 wrong.

    Word `fog` of sample 1 is in no caption, so its text is a new one, scored by `dog`.
    """
    texts = {0: "face", 1: "dog face in fog", 2: "face", 3: "dog face"}
    found = scored(["cat face", "dog face", *["bird face"] * 198], texts)
    assert found["word_match"] == (1.0, 4)
    assert found["word_match_shuffled"] == (1.0, 4)
    assert found["rare_word_match"] == (0.5, 2)
    assert found["rare_word_match_known"] == (0.0, 1)
    assert found["rare_word_match_new"] == (1.0, 1)
    # Whichever of the two texts with `dog` stands beside sample 1, the one image of a dog.
    assert found["rare_word_match_shuffled"].value == pytest.approx(1 / 4, abs=0.15)


def test_scores_of_no_samples_are_left_out():
    """Texts of common words only, all known."""
    found = scored(["face"] * 300, dict.fromkeys(range(4), "face"))
    assert found == {"word_match": (1.0, 4), "word_match_shuffled": (1.0, 4)}
