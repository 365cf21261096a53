# SPDX-License-Identifier: Apache-2.0
r"""Score of samples that are drawn by texts: does the nearest real image have one of the words?

    word_match = share of samples i with  words(text_i) & words(caption of the image next to i)

The nearest is a training image, by Euclidean distance in the features of the run. Held-out images
with their own captions give what can be reached, and the texts of other samples (`shuffled`) what
chance gives: words that stand in many captions match by chance often.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torchmetrics.utilities import dim_zero_cat

from scm_lightning.data import ShardDataModule
from scm_lightning.metrics import SampleScores, Score
from scm_lightning.text.words import words_of

CHUNK = 1024
"""Samples whose nearest images are looked for at once."""


def word_match(
    drawn: SampleScores, texts: Mapping[int, str], captions: Sequence[str]
) -> dict[str, Score]:
    """Scores `word_match` and `word_match_shuffled` of a set.

    Args:
        drawn: the set, all of it in this process.
        texts: text of every sample, by its number in the set.
        captions: those of the training images whose features the reference keeps, in their order.
    """
    states: Any = drawn  # of a torchmetrics.Metric
    numbers = dim_zero_cat(states.indices).tolist()
    parts = torch.split(dim_zero_cat(states.features), CHUNK)
    known = drawn.reference.features
    nearest = torch.cat([torch.cdist(part, known).argmin(1) for part in parts]).tolist()
    found = [{*words_of(captions[each])} for each in nearest]
    own = [{*words_of(texts[number])} for number in numbers]
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(0)).tolist()
    shares = {"word_match": own, "word_match_shuffled": [own[other] for other in order]}
    return {
        name: Score(
            sum(bool(a & b) for a, b in zip(wanted, found, strict=True)) / len(found), len(found)
        )
        for name, wanted in shares.items()
    }


def captions_of(datamodule: ShardDataModule, split: str, num: int) -> list[str]:
    """Captions of the first samples of a split; none of data without."""
    first = islice(datamodule.samples[split], num) if datamodule.index.captions else ()
    return [sample.caption for sample in first if sample.caption is not None]
