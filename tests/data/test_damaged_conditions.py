# SPDX-License-Identifier: Apache-2.0
"""Damaged conditions: each kind is an error in one line that names shard and sample."""

import io
import json
import shutil
import struct
import zlib

import numpy as np
import pytest
from condition_sets import data_of, sample_of, write_conditions
from PIL import Image
from test_damage import array, rewrite

from scm_lightning.data import write_null

SHARD, NUMBER = "train-000006.tar", 9
KEY = f"{NUMBER:08d}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "shards"
    write_conditions(folder)
    return folder


def png(picture, kind="png", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def bomb(width, height):
    """A picture that says it is enormous, in a few bytes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def with_chunks(*chunks):
    """The picture with others behind its header."""
    content = png(Image.fromarray(PICTURE))
    end = 8 + 25
    return content[:end] + b"".join(chunks) + content[end:]


PICTURE = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
RGB = Image.fromarray(PICTURE)
TEXT = sample_of(NUMBER).conditions["text"]
NAN = np.where(np.arange(5) == 3, np.nan, TEXT).astype(np.float16)
SECOND_HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
TEXT_BOMB = chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(1 << 26)))
MEMBERS = {
    "text missing": ("text.npy", None),
    "text empty": ("text.npy", b""),
    "text longer than declared": ("text.npy", array(np.zeros((4, 5), np.float16))),
    "text of another width": ("text.npy", array(np.zeros((1, 4), np.float16))),
    "text without axes": ("text.npy", array(np.zeros((), np.float16))),
    "text of one axis": ("text.npy", array(np.zeros(5, np.float16))),
    "text of another type": ("text.npy", array(TEXT.astype(np.float32))),
    "text with a NaN": ("text.npy", array(NAN)),
    "text with an infinity": ("text.npy", array(np.full((1, 5), np.inf, np.float16))),
    "text of objects": ("text.npy", array(np.array([print], object))),
    "text pickled": ("text.npy", __import__("pickle").dumps(TEXT)),
    "text cut": ("text.npy", array(TEXT)[:-1]),
    "numbers longer": ("ids.npy", array(np.zeros(3, np.int64))),
    "numbers shorter": ("ids.npy", array(np.zeros(1, np.int64))),
    "numbers of floats": ("ids.npy", array(np.zeros(2))),
    "a number with an axis": ("age.npy", array(np.zeros(1, np.float32))),
    "picture missing": ("image.png", None),
    "picture empty": ("image.png", b""),
    "picture of garbage": ("image.png", b"rubbish" * 9),
    "picture cut": ("image.png", png(RGB)[:60]),
    "picture cut behind its header": ("image.png", png(RGB)[:33]),
    "picture flipped": ("image.png", png(RGB)[:50] + b"\xff" + png(RGB)[51:]),
    "picture of another kind of file": ("image.png", png(RGB, "jpeg")),
    "picture of PostScript": ("image.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n"),
    "picture larger": ("image.png", png(RGB.resize((7, 4)))),
    "picture turned": ("image.png", png(RGB.resize((4, 6)))),
    "picture gray": ("image.png", png(RGB.convert("L"))),
    "picture of a palette": ("image.png", png(RGB.convert("P"))),
    "picture with alpha": ("image.png", png(RGB.convert("RGBA"))),
    "picture of 16 bits": ("outline.png", png(Image.fromarray(np.zeros((4, 6), np.uint16)))),
    "picture of 1 bit": ("outline.png", png(RGB.convert("1"))),
    "picture a bomb": ("image.png", bomb(100_000, 100_000)),
    "picture a small bomb": ("image.png", bomb(12_000, 9_000)),
    "picture of two sizes": ("image.png", with_chunks(SECOND_HEADER)),
    "picture with endless text": ("image.png", with_chunks(TEXT_BOMB)),
    "caption missing": ("txt", None),
    "caption of another encoding": ("txt", "Bär".encode("latin-1")),
    "caption cut within a letter": ("txt", "ein Bä".encode()[:-1]),
}


def use(folder, mapped):
    """Train for a pass."""
    for batch in data_of(folder, mapped).train_dataloader():
        assert len(batch.indices)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("kind", MEMBERS)
def test_damaged_members(whole, tmp_path, kind, mapped):
    folder = tmp_path / "shards"
    shutil.copytree(whole, folder)
    name, content = MEMBERS[kind]
    changed = f"{KEY}.{name}"
    rewrite(folder / SHARD, lambda m, old: content if m.name == changed else old)
    index = json.loads((folder / "shards.json").read_text())
    for shard in index["splits"]["train"]["shards"]:
        if shard["name"] == SHARD:
            shard["num_bytes"] = (folder / SHARD).stat().st_size
    (folder / "shards.json").write_text(json.dumps(index))
    damaged = rf"^sample {KEY} of shard .*{SHARD} is damaged: "
    with pytest.raises(ValueError, match=damaged) as said:
        use(folder, mapped)
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 600
    assert name in str(said.value)


def declared(name="text", **fields):
    def change(index):
        index["conditions"].setdefault(name, {**index["conditions"]["text"]}).update(fields)

    return change


INDICES = {
    "a list": lambda index: index.update(conditions=[]),
    "a text": lambda index: index.update(conditions="text"),
    "a condition a list": lambda index: index["conditions"].update(text=[3, 5]),
    "a field too many": declared(extra=1),
    "a field too few": lambda index: index["conditions"]["text"].pop("shape"),
    "captions of text": lambda index: index.update(captions="yes"),
    "another type": declared(dtype="object"),
    "a type a list": declared(dtype=["float16"]),
    "a negative shape": declared(shape=[-3, 5]),
    "a shape of fractions": declared(shape=[3.0, 5]),
    "a shape of texts": declared(shape=["3", 5]),
    "a shape a number": declared(shape=3),
    "a shape of nothing": declared(shape=[0, 5]),
    "a shape beyond any memory": declared(shape=[1 << 30, 1 << 9]),
    "a shape beyond any integer": declared(shape=[10**400]),
    "a varying number": declared(shape=[]),
    "varying a number": declared(varying=1),
    "a varying picture": declared("image", varying=True),
    "a picture of two channels": declared("image", shape=[2, 4, 6]),
    "a picture of a line": declared("image", shape=[3, 24]),
    "an encoder a number": declared(encoder=1),
    "a null a number": declared(null_sha256=1),
    "the name of the data": declared("x"),
    "the name of the class": declared("labels"),
    "the name of a mask": declared("words_mask"),
    "the name of a path": declared("../text"),
    "the name of a command": declared("pipe:touch hacked"),
    "no name": declared(""),
    "an enormous name": declared("a" * 90),
    "a name with an umlaut": declared("b\u00e4r"),
}


@pytest.mark.parametrize("kind", INDICES)
def test_damaged_indices(whole, tmp_path, kind):
    folder = tmp_path / "shards"
    shutil.copytree(whole, folder)
    file = folder / "shards.json"
    index = json.loads(file.read_text())
    INDICES[kind](index)
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"does not describe shards: .*; prepare") as said:
        use(folder, None)
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 600


def test_a_null_of_another_shape_is_refused(whole, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(whole, folder)
    index = json.loads((folder / "shards.json").read_text())
    checksum = write_null(folder, "text", np.zeros((1, 7), np.float16))
    index["conditions"]["text"]["null_sha256"] = checksum
    (folder / "shards.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"null\.text\.npy is damaged: it must have at most shape"):
        data_of(folder)
