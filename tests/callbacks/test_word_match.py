# SPDX-License-Identifier: Apache-2.0
"""Share of samples whose nearest real image has one of the words that were asked for."""

from types import SimpleNamespace

import torch

from scm_lightning.callbacks.word_match import word_match


def test_the_nearest_image_decides_by_any_word_it_shares():
    """Samples 3, 1, 0, 2 lie at training images 0, 1, 2, 0; two of four texts share a word."""
    reference = SimpleNamespace(features=torch.tensor([[0.0, 0], [10, 0], [0, 10]]))
    drawn = SimpleNamespace(
        reference=reference,
        indices=[torch.tensor([3, 1]), torch.tensor([0, 2])],
        features=[torch.tensor([[0.1, 0], [9, 1]]), torch.tensor([[1.0, 8], [1, 1]])],
    )
    captions = ["Red cat!", "blue dog", "green bird"]
    texts = {0: "a blue hat", 1: "DOG", 2: "the cat", 3: "bird"}
    found = word_match(drawn, texts, captions)
    assert found["word_match"] == (0.5, 4)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(0)).tolist()
    # Texts of samples 3, 1, 0, 2 by the images of 3, 1, 0, 2: bird, dog, blue hat, cat.
    fits = [[0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1]]
    share = sum(fits[text][image] for image, text in enumerate(order)) / 4
    assert found["word_match_shuffled"] == (share, 4)
