# SPDX-License-Identifier: Apache-2.0
"""Prompts of a file: encoded as captions are, asked for in their order; what does not fit them."""

import numpy as np
import pytest
from painted import PaintedImages, recipe
from text.tiny_encoders import write_encoder

from scm_lightning.core.conditions import NULL_LABEL
from scm_lightning.data import Shards
from scm_lightning.preparation.captions import Captions
from scm_lightning.preparation.engine import prepare
from scm_lightning.text import Transformers, Words


def shards(folder, encoder=None):
    """Painted images of three classes, with captions where there is an encoder."""
    source = PaintedImages(40)
    names = [item.name for item in source.items]
    captions = encoder and Captions(["a red cat"] * len(names), names, encoder)
    prepare(recipe(source, captions=captions), folder / "shards")
    return str(folder / "shards")


def requests(root, **options):
    made = Shards(0.5, root, sample_batch_size=3, **options)
    made.setup("predict")
    return [*made.predict_dataloader()]


def write(folder, text):
    (folder / "prompts.txt").write_text(text, "utf-8")
    return str(folder / "prompts.txt")


def test_each_prompt_is_asked_for_once_with_its_own_tokens(tmp_path):
    root = shards(tmp_path, Words(32, 4))
    file = write(tmp_path, "\ufeffA blue dog\n\n  größe \r\nred\nfour words of text\n")
    found = requests(root, prompts=file)
    assert [request.indices.tolist() for request in found] == [[0, 1, 2], [3]]
    texts = ["A blue dog", "größe", "red", "four words of text"]
    assert [text for request in found for text in request.prompts] == texts
    for request in found:
        assert request.labels.tolist() == [NULL_LABEL] * len(request.prompts)
        for row, text in enumerate(request.prompts):
            (tokens,) = Words(32, 4).encode([text])
            kept = request.conditions["text_mask"][row]
            assert kept.sum() == len(tokens) == len(text.split())
            stored = tokens.astype(np.float16)
            np.testing.assert_array_equal(request.conditions["text"][row][kept], stored)
            assert not request.conditions["text"][row][~kept].any()


def test_prompts_come_again_up_to_a_number_and_never_fewer_than_one_of_each(tmp_path):
    root = shards(tmp_path, Words(32, 4))
    file = write(tmp_path, "one\ntwo\n")
    for num, expected in ((5, ["one", "two", "one", "two", "one"]), (1, ["one", "two"])):
        found = requests(root, prompts=file, num_predict_samples=num)
        assert [text for request in found for text in request.prompts] == expected
    assert sum(len(request.indices) for request in requests(root)) == 100


def test_prompts_of_a_pretrained_encoder_may_come_from_another_place(tmp_path):
    """Its folder was moved: the index names what is not there, the checksum is the same."""
    write_encoder(tmp_path / "clip", "CLIPTextModel")
    root = shards(tmp_path, Transformers(str(tmp_path / "clip")))
    file = write(tmp_path, "a red cat")
    (before,) = requests(root, prompts=file)
    moved = (tmp_path / "clip").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"clip must be .*no config\.json.*new place as data"):
        requests(root, prompts=file)
    (after,) = requests(root, prompts=file, text_encoder=str(moved))
    assert before.conditions["text"].equal(after.conditions["text"])
    assert "null.text.npy" in {each.name for each in (tmp_path / "shards").iterdir()}
    write_encoder(tmp_path / "other", "T5EncoderModel")
    with pytest.raises(ValueError, match=r"as the captions were, by .*clip of width 16 and SHA"):
        requests(root, prompts=file, text_encoder=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n  \n", "must have a prompt in each line, got none"),
        ("a cat\n\n?!\n", r"must have words in it, got '\?!' in line 3 of"),
    ],
)
def test_files_without_words_are_refused(content, message, tmp_path):
    root = shards(tmp_path, Words(32, 4))
    with pytest.raises(ValueError, match=message):
        requests(root, prompts=write(tmp_path, content))


def test_files_and_data_that_do_not_fit_are_refused(tmp_path):
    root, plain = shards(tmp_path, Words(32, 4)), shards(tmp_path / "plain")
    file = write(tmp_path, "a cat")
    with pytest.raises(ValueError, match=r"got .*prompt\.txt: .*; did you mean .*prompts\.txt\?"):
        requests(root, prompts=str(tmp_path / "prompt.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="must be a text file in UTF-8"):
        requests(root, prompts=str(tmp_path / "latin.txt"))
    with pytest.raises(ValueError, match="prompts need data with text, which painted images was"):
        requests(plain, prompts=file)
    with pytest.raises(ValueError, match="prompts need data with text"):
        requests(root, prompts=file, conditions=[])


def test_a_longer_prompt_is_told(tmp_path, capsys):
    root = shards(tmp_path, Words(32, 2))
    capsys.readouterr()
    (request,) = requests(root, prompts=write(tmp_path, "a cat\na big dog\n"))
    assert "1 of 2 prompts are cut off behind 2 words, first that of line 2" in (
        capsys.readouterr().out
    )
    assert request.prompts == ["a cat", "a big dog"]
