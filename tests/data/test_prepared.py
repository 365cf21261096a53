# SPDX-License-Identifier: Apache-2.0
"""Shards that were made before: by the example of data/README.md, with and without classes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_sets import write_set

from scm_lightning.data import Shards

ROOT = Path(__file__).parents[2]


def test_the_readmes_example_makes_shards_that_train(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "data" / "README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    data = Shards(0.7, "data/mine/shards", batch_size=5)
    data.prepare_data()
    data.setup("fit")
    x0, labels, *_ = next(iter(data.train_dataloader()))
    assert x0.shape == (5, 3, 32, 32)
    assert float(x0.std()) == pytest.approx(0.7, rel=0.05)
    assert set(labels.tolist()) <= set(range(10))


@pytest.mark.parametrize(("num_classes", "use_labels"), [(0, True), (3, False)])
def test_data_without_classes_or_told_to_hide_them(tmp_path, num_classes, use_labels):
    """No labels in batches, nor in the orders for samples."""
    images = np.arange(12 * 2 * 4, dtype=np.float32).reshape(12, 2, 4, 1)
    labels = np.arange(12) % max(num_classes, 1)
    splits = {"train": (images, labels), "heldout": (images, labels)}
    write_set(tmp_path / "x", splits, num_classes, 1.0, 5)
    data = Shards(0.7, str(tmp_path / "x"), batch_size=5, use_labels=use_labels)
    data.prepare_data()
    data.setup("fit")
    assert next(iter(data.train_dataloader())).labels is None
    assert next(iter(data.val_dataloader())).labels is None
    assert next(data.heldout_batches()).labels is None


def test_missing_shards_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no shards in .*nowhere: it has no shards.json"):
        Shards(0.7, str(tmp_path / "nowhere")).prepare_data()
    by = f"scm prepare --source x --out {tmp_path}"
    with pytest.raises(ValueError, match=f"write them with `{by}`, or"):
        Shards(0.7, str(tmp_path), prepared_by=by).prepare_data()
    with pytest.raises(ValueError, match=rf"with `scm prepare --source IMAGES --out {tmp_path}`"):
        Shards(0.7, str(tmp_path), prepared_by="scm prepare --source x --out y").prepare_data()


def test_half_of_the_images_are_mirrored_always_the_same_ones(tmp_path):
    """In training only; another pass mirrors others."""
    images = np.random.default_rng(0).normal(size=(40, 2, 4, 3)).astype(np.float32)
    splits = {"train": (images, np.zeros(40, np.int64)), "heldout": (images, np.zeros(40))}
    write_set(tmp_path / "x", splits, 0, 1.0, 15)

    def passes(flip):
        data = Shards(0.7, str(tmp_path / "x"), batch_size=20, horizontal_flip=flip)
        data.setup("fit")
        loader = data.train_dataloader()
        batches = [batch for _ in range(2) for batch in loader]
        mirrored = {}
        for number, batch in enumerate(batches):
            plain = data.index.arrays_to_data(torch.from_numpy(images[batch.indices]), 0.7)
            same = (batch.x0 == plain).flatten(1).all(1)
            assert torch.equal(batch.x0[~same], plain[~same].flip(-1))
            mirrored |= {
                (number // 2, int(i)): not s for i, s in zip(batch.indices, same, strict=True)
            }
        return mirrored, next(data.heldout_batches()).x0

    (flips, heldout), (again, _), (none, plain) = passes(True), passes(True), passes(False)
    assert flips == again
    assert 20 < sum(flips.values()) < 60
    assert [flips[0, i] for i in range(40)] != [flips[1, i] for i in range(40)]
    assert not any(none.values())
    assert torch.equal(heldout, plain)
