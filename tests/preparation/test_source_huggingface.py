# SPDX-License-Identifier: Apache-2.0
"""Folders of Hugging Face's library: by the library itself where it is, and by a stand-in."""

import io
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from scm_lightning.preparation.sources import UnreadableImageError, open_source, read_captions


class StandIn(ModuleType):
    """The few names that are used. `saved` is what the folder holds."""

    def __init__(self, saved):
        super().__init__("datasets")
        self.load_from_disk = lambda path: saved

    class Image:
        def __init__(self, decode=True):
            self.decode = decode

    class ClassLabel:
        def __init__(self, names):
            self.names = names

    class DatasetDict(dict):
        pass


class Rows:
    """A data set of columns; images decode themselves unless they are told not to."""

    def __init__(self, columns, features):
        self.columns, self.features = columns, features

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def with_format(self, form):
        return self

    def select_columns(self, names):
        return Rows({name: self.columns[name] for name in names}, self.features)

    def cast_column(self, name, feature):
        return Rows(self.columns, {**self.features, name: feature})

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        assert not self.features["img"].decode, "the library must not decode"
        return {name: column[key] for name, column in self.columns.items()}


def stored(value):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


FEATURES = {"img": StandIn.Image(), "kind": StandIn.ClassLabel(["cat", "dog"])}


def rows(values, labels, features=FEATURES):
    names = list(features)
    return Rows({names[0]: [stored(v) for v in values], names[1]: labels}, features)


def opened(monkeypatch, tmp_path, saved):
    monkeypatch.setitem(sys.modules, "datasets", StandIn(saved))
    for part in saved if isinstance(saved, dict) else [""]:
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "data.arrow").write_bytes(b"12345")
    (tmp_path / "state.json").write_text("{}")
    return open_source(str(tmp_path))


def test_splits_and_classes(monkeypatch, tmp_path):
    saved = StandIn.DatasetDict(train=rows([7, 8, 9], [1, 0, 1]), validation=rows([5], [1]))
    source = opened(monkeypatch, tmp_path, saved)
    assert source.kind == "huggingface"
    assert source.class_names == ["cat", "dog"]
    assert [(item.label, item.split) for item in source.items] == [
        *[(1, "train"), (0, "train"), (1, "train")],
        (1, "heldout"),
    ]
    travelled = pickle.loads(pickle.dumps(source))
    assert [int(travelled.load(n)[0, 0, 0]) for n in (3, 0, 2)] == [5, 7, 9]
    assert travelled.fingerprint() == source.fingerprint()


def test_a_part_with_secret_classes_is_left_out(monkeypatch, tmp_path):
    saved = StandIn.DatasetDict(train=rows([7, 8], [1, 0]), test=rows([5], [-1]))
    source = opened(monkeypatch, tmp_path, saved)
    assert [item.split for item in source.items] == ["", ""]
    with pytest.raises(ValueError, match="got 1 others, first -1"):
        opened(monkeypatch, tmp_path, rows([7, 8], [-1, 0]))


def test_other_labels(monkeypatch, tmp_path):
    features = {"img": StandIn.Image(), "label": "int64"}
    source = opened(monkeypatch, tmp_path, rows([1, 2], [3, 0], features))
    assert ([item.label for item in source.items], len(source.class_names)) == ([3, 0], 4)
    source = opened(monkeypatch, tmp_path, rows([1, 2], ["sun", "moon"], features))
    assert source.class_names == ["moon", "sun"]
    features = {"img": StandIn.Image(), "caption": "string"}
    assert opened(monkeypatch, tmp_path, rows([1], ["x"], features)).class_names == []


@pytest.mark.parametrize(
    ("saved", "problem"),
    [
        (StandIn.DatasetDict(extra=rows([1], [0])), "rename them"),
        (rows([1], [0], {"a": "string", "label": "int64"}), "one column of images, got none"),
        (rows([1], [None]), "got 1 others, first None"),
        (rows([], []), "got none"),
    ],
)
def test_unclear_data_sets_are_refused(monkeypatch, tmp_path, saved, problem):
    with pytest.raises(ValueError, match=problem):
        opened(monkeypatch, tmp_path, saved)


def test_images_of_which_only_a_path_is_stored_are_refused(monkeypatch, tmp_path):
    saved = rows([1], [0])
    saved.columns["img"] = [{"bytes": None, "path": "/etc/passwd"}]
    with pytest.raises(UnreadableImageError, match="all/00000000 cannot be read: its bytes"):
        opened(monkeypatch, tmp_path, saved).load(0)


def test_without_the_library_its_name_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="run pip install datasets"):
        open_source(str(tmp_path), "huggingface")


def test_the_library_itself(tmp_path):
    """Two parts, written and read by the real one."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))

    def part(values):
        images = [Image.fromarray(np.full((2, 3, 3), value, np.uint8)) for value in values]
        columns = {"img": images, "label": [value % 2 for value in values]}
        return datasets.Dataset.from_dict(columns, features=features)

    saved = datasets.DatasetDict(train=part([3, 4, 5]), test=part([8]))
    saved.save_to_disk(str(tmp_path / "x"))
    source = pickle.loads(pickle.dumps(open_source(str(tmp_path / "x"))))
    assert [(item.label, item.split) for item in source.items] == [
        *[(1, "train"), (0, "train"), (1, "train")],
        (0, "heldout"),
    ]
    assert [int(source.load(n)[0, 0, 0]) for n in range(4)] == [3, 4, 5, 8]
    with pytest.raises(ValueError, match="save_to_disk has written, got another"):
        open_source(str(tmp_path), "huggingface")


def test_captions_are_a_column_of_texts(monkeypatch, tmp_path):
    """In the order of the images, of all parts but those that are left out."""
    features = {**FEATURES, "caption": "string"}

    def part(values, labels):
        made = rows(values, labels, features)
        made.columns["caption"] = [f" image {value}\n" for value in values]
        return made

    saved = StandIn.DatasetDict(
        train=part([7, 8], [1, 0]), val=part([5], [1]), test=part([6], [-1])
    )
    source = opened(monkeypatch, tmp_path, saved)
    assert read_captions(source, "caption") == ["image 7", "image 8", "image 5"]
    assert [int(source.load(n)[0, 0, 0]) for n in range(3)] == [7, 8, 5]
    with pytest.raises(ValueError, match=r"one of caption, img, kind, got captions; did you mean"):
        read_captions(source, "captions")
    with pytest.raises(ValueError, match="a text for every image, got 3 others, first 1"):
        read_captions(source, "kind")
