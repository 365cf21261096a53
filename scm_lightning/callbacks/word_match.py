# SPDX-License-Identifier: Apache-2.0
r"""Score of samples that are drawn by texts: does the nearest real image have one of the words?

    word_match = share of samples i with  words(text_i) & words(caption of the image next to i)

The nearest is a training image, by Euclidean distance in the features of the run. Words of many
captions match by chance, so `rare_word_match` counts rare words alone: those of 1 % of the training
captions at most. A sample whose text has none takes no part in it.
A word that no training caption has cannot match either; texts with one are scored by their others.

Held-out images with their own captions give what can be reached, and texts of other samples
(`shuffled`) what chance gives.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torchmetrics.utilities import dim_zero_cat

from scm_lightning.callbacks.run import SAMPLER_NAMES
from scm_lightning.data import ShardDataModule
from scm_lightning.metrics import FeatureExtractor, SampleScores, Score
from scm_lightning.text.words import words_of

CHUNK = 1024
"""Samples whose nearest images are looked for at once."""
RARE = 0.01
"""Largest share of the training captions that have a rare word; of few captions it is one."""
NUM_ORDERS = 16
"""Random orders of the texts that chance is a mean over."""
COLUMNS = {
    "word_match": "any word",
    "word_match_shuffled": "chance",
    "rare_word_match": "rare word",
    "rare_word_match_shuffled": "chance",
    "rare_word_match_known": "all known",
    "rare_word_match_new": "one new",
}
"""Scores, and the heads of their columns."""


def word_match(
    drawn: SampleScores, texts: Mapping[int, str], captions: Sequence[str]
) -> dict[str, Score]:
    """Scores of a set by the words of its texts.

    Args:
        drawn: the set, all of it in this process.
        texts: text of every sample, by its number in the set.
        captions: those of the training images whose features the reference keeps, in their order.

    Returns:
        Scores by name, those of `COLUMNS`: `known` over texts whose words all stand in some
        caption, `new` over those with a word that stands in none. Without those of no samples.
    """
    states: Any = drawn  # of a torchmetrics.Metric
    numbers, order = dim_zero_cat(states.indices).sort()
    parts = torch.split(dim_zero_cat(states.features)[order], CHUNK)
    known = drawn.reference.features
    nearest = torch.cat([torch.cdist(part, known).argmin(1) for part in parts]).tolist()
    of_captions = [{*words_of(caption)} for caption in captions]
    counts = Counter(word for words in of_captions for word in words)
    most = max(1, RARE * len(captions))
    rare = {word for word, count in counts.items() if count <= most}
    found = [of_captions[each] for each in nearest]
    own = [{*words_of(texts[number])} for number in numbers.tolist()]
    own_rare = [words & rare for words in own]
    is_new = [bool(words - counts.keys()) for words in own]
    scores = {
        "word_match": _share(own, found),
        "word_match_shuffled": _chance(own, found),
        "rare_word_match": _share(own_rare, found),
        "rare_word_match_shuffled": _chance(own_rare, found),
    }
    for name, wanted in {"known": False, "new": True}.items():
        chosen = [i for i, new in enumerate(is_new) if new == wanted]
        scores[f"rare_word_match_{name}"] = _share(
            [own_rare[i] for i in chosen], [found[i] for i in chosen]
        )
    return {name: score for name, score in scores.items() if score.num_samples}


def _share(wanted: Sequence[set[str]], found: Sequence[set[str]]) -> Score:
    """Share of those with wanted words that have one of them."""
    fits = [bool(a & b) for a, b in zip(wanted, found, strict=True) if a]
    return Score(sum(fits) / max(len(fits), 1), len(fits))


def _chance(wanted: Sequence[set[str]], found: Sequence[set[str]]) -> Score:
    """The mean share of texts in random orders."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(found), generator=generator).tolist() for _ in range(NUM_ORDERS)]
    shares = [_share([wanted[i] for i in order], found) for order in orders]
    return Score(sum(each.value for each in shares) / NUM_ORDERS, shares[0].num_samples)


def word_table(
    scores: Mapping[str, Mapping[str, Score]], extractor: FeatureExtractor
) -> Table | None:
    """A table of these scores with a row for every way to draw samples; None, if there are none.

    Args:
        scores: by row, then by kind.
        extractor: what the nearest image is looked for in.
    """
    kinds = [kind for kind in COLUMNS if any(kind in of_row for of_row in scores.values())]
    if not kinds:
        return None
    below = (
        "Share of samples whose nearest training image has a word of their text; chance: of "
        f"another text. A rare word is in {RARE:.0%} of the training captions at most; of these, "
        "all known: texts whose words all are in training captions; one new: texts with a word "
        "that is in none, by their other words. Numbers of samples are in metrics.json."
    )
    title = f"words of the nearest image in {extractor.description}; higher is better"
    table = Table(title=title, caption=Text(below), box=SIMPLE_HEAD, padding=0)
    table.add_column("samples")
    for kind in kinds:
        table.add_column(COLUMNS[kind], justify="right", no_wrap=True)
    for row, of_row in scores.items():
        cells = [f"{of_row[kind].value:.3f}" if kind in of_row else "-" for kind in kinds]
        table.add_row(SAMPLER_NAMES.get(row, row), *cells)
    return table


def captions_of(datamodule: ShardDataModule, split: str, num: int) -> list[str]:
    """Captions of the first samples of a split; none of data without."""
    first = islice(datamodule.samples[split], num) if datamodule.index.captions else ()
    return [sample.caption for sample in first if sample.caption is not None]
