# SPDX-License-Identifier: Apache-2.0
"""Captions beside images: the right one by each, the same bytes always, and what is refused."""

import csv

import numpy as np
import pytest
from painted import PaintedImages, content_of, recipe
from preparation.test_source_files import as_zip, fill, png
from preparation.test_source_tars import write_tar
from text.tiny_encoders import write_encoder

from scm_lightning.data import ShardIndex, read_shard
from scm_lightning.preparation.captions import Captions
from scm_lightning.preparation.engine import prepare
from scm_lightning.preparation.sources import open_source, read_captions
from scm_lightning.text import Transformers, Words

IMAGES = ["cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"]


def captioned(num, encoder=None, unreadable=()):
    """Recipe of painted images whose captions tell their number, in one to three words."""
    source = PaintedImages(num, unreadable=unreadable)
    texts = [" ".join(["number", "of", str(n)][-1 - n % 3 :]) for n in range(num)]
    names = [item.name for item in source.items]
    return recipe(source, captions=Captions(texts, names, encoder or Words(32, 2))), source, texts


def read_whole_split(folder, split):
    index = ShardIndex.read(folder)
    files = [str(folder / shard.name) for shard in index.splits[split].shards]
    return [x for f in files for x in read_shard(f, None, index.conditions, index.captions)]


def test_every_image_has_its_own_caption_and_tokens(tmp_path):
    """The images tell their number, and so do the captions; an image that is left out has none."""
    made, source, texts = captioned(53, unreadable=[5, 31])
    index = prepare(made, tmp_path / "out", max_unreadable=2).index
    text = index.conditions["text"]
    assert (text.shape, text.dtype, text.varying) == ((2, 32), "float16", True)
    assert (text.encoder, text.encoder_sha256) == ("words", Words().sha256)
    assert index.captions
    assert text.null_sha256 == ""
    samples = [s for name in index.splits for s in read_whole_split(tmp_path / "out", name)]
    assert len(samples) == 51
    for sample in samples:
        assert sample.caption == texts[source.number_of(sample.array)]
        (tokens,) = Words(32, 2).encode([sample.caption])
        np.testing.assert_array_equal(sample.conditions["text"], tokens.astype(np.float16))


def test_tokens_of_a_pretrained_encoder_and_of_the_empty_text(tmp_path):
    write_encoder(tmp_path / "clip", "CLIPTextModel")
    encoder = Transformers(str(tmp_path / "clip"))
    made, _, _ = captioned(20, encoder)
    text = prepare(made, tmp_path / "out").index.conditions["text"]
    assert text.encoder_sha256 == encoder.sha256
    assert text.shape == (12, encoder.width)
    null = np.load(tmp_path / "out" / "null.text.npy")
    np.testing.assert_array_equal(null, encoder.encode([""])[0].astype(np.float16))
    for sample in read_whole_split(tmp_path / "out", "train"):
        (alone,) = encoder.encode([sample.caption])
        np.testing.assert_allclose(sample.conditions["text"], alone, rtol=2e-3, atol=1e-4)


def test_an_interrupted_preparation_ends_in_the_same_bytes(tmp_path):
    write_encoder(tmp_path / "t5", "T5EncoderModel")
    made, source, _ = captioned(53, Transformers(str(tmp_path / "t5")))
    prepare(made, tmp_path / "whole")
    source.failing = 40
    with pytest.raises(ValueError, match="the drive was taken out"):
        prepare(made, tmp_path / "halves")
    assert len([*(tmp_path / "halves").glob("*.tar")]) > 1
    source.failing = -1
    prepare(made, tmp_path / "halves")
    assert content_of(tmp_path / "halves") == content_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("texts", "encoder", "message"),
    [
        (["other"] * 20, Words(32, 2), "captions was .* and is"),
        (None, Words(32, 3), "text_length was 2 and is 3"),
        (None, Words(40, 2), "text_width was 32 and is 40"),
    ],
)
def test_other_captions_or_another_encoder_are_refused_in_a_folder_begun(
    texts, encoder, message, tmp_path
):
    made, source, own = captioned(20)
    prepare(made, tmp_path / "out")
    names = [item.name for item in source.items]
    other = recipe(source, captions=Captions(texts or own, names, encoder))
    with pytest.raises(ValueError, match=message):
        prepare(other, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "came"), [("", "''"), ("  ", "'  '"), ("!!! \U0001f600", "'!!! \U0001f600'")]
)
def test_captions_without_words_are_refused(text, came):
    with pytest.raises(ValueError, match=f"words in it, got 1 without of 2, first {came} of b.png"):
        Captions(["a cat", text], ["a.png", "b.png"], Words())


def test_longer_captions_are_counted(capsys):
    Captions(["a b c", "a b", "a b c d", "a"], ["w", "x", "y", "z"], Words(32, 2))
    assert capsys.readouterr().out == (
        "2 of 4 captions are cut off behind 2 words; the longest has 4, that of y (text_length "
        "changes it)\n"
    )


def table(file, rows, header=("file", "caption")):
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])
    return str(file)


@pytest.mark.parametrize("pack", [lambda folder: folder, as_zip])
def test_a_table_gives_captions_in_any_order(pack, tmp_path):
    """With commas, quotes and letters of all kinds, in a folder that has classes besides."""
    source = open_source(str(pack(fill(tmp_path / "pets", IMAGES))))
    rows = [(name, f' {name}, "große" Katze ') for name in reversed(IMAGES)]
    texts = read_captions(source, table(tmp_path / "captions.csv", rows))
    assert texts == [f'{name}, "große" Katze' for name in IMAGES]
    assert source.class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (IMAGES[1:], ("file", "caption"), "has no caption for images: 1, first cat/1.png"),
        ([*IMAGES, "x.png"], ("file", "caption"), "that are not there: 1, first x.png"),
        ([*IMAGES, IMAGES[0]], ("file", "caption"), "lists images twice: 1, first cat/1.png"),
        (IMAGES, ("file", "label"), "must start with the line file,caption, got file,label"),
    ],
)
def test_tables_that_do_not_fit_are_refused(rows, header, message, tmp_path):
    source = open_source(str(fill(tmp_path / "pets", IMAGES)))
    file = table(tmp_path / "captions.csv", [(name, "a pet") for name in rows], header)
    with pytest.raises(ValueError, match=message):
        read_captions(source, file)


def test_captions_of_webdataset_shards(tmp_path):
    def sample(n):
        return [(f"{n}.png", png(n)), (f"{n}.txt", f"größe {n}\n".encode())]

    write_tar(tmp_path / "a.tar", [*sample(1), *sample(2)])
    write_tar(tmp_path / "b.tar", sample(3))
    source = open_source(str(tmp_path))
    assert read_captions(source, "txt") == ["größe 1", "größe 2", "größe 3"]
    with pytest.raises(ValueError, match=r"members KEY\.txt, got captions.csv; give captions txt"):
        read_captions(source, "captions.csv")
    write_tar(tmp_path / "b.tar", sample(3)[:1])
    with pytest.raises(ValueError, match=r"got 1 without of 3, first b\.tar/3"):
        read_captions(open_source(str(tmp_path)), "txt")
    write_tar(tmp_path / "b.tar", [*sample(3)[:1], ("3.txt", b"\xff")])
    with pytest.raises(ValueError, match=r"a caption of .*b\.tar must be text in UTF-8"):
        read_captions(open_source(str(tmp_path)), "txt")


def test_other_kinds_of_sources_have_no_captions():
    with pytest.raises(ValueError, match=r"captions go with images in a folder, .* got painted"):
        read_captions(PaintedImages(3), "captions.csv")
