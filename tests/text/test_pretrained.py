# SPDX-License-Identifier: Apache-2.0
"""Encoders of transformers: their tokens are those of the library; other folders are refused."""

import json
import sys

import numpy as np
import pytest
import torch
from text.tiny_encoders import WIDTH, write_encoder, write_tokenizer

from scm_lightning.text import Transformers, Words, open_encoder

pytest.importorskip("transformers")

TEXTS = ["a red cat with a blue hat", "dog", "", "a zebra"]
KINDS = [
    *("CLIPTextModel", "CLIPTextModelWithProjection", "CLIPModel"),
    *("T5EncoderModel", "T5ForConditionalGeneration"),
    *("GemmaModel", "GemmaForCausalLM", "Gemma2Model", "Gemma2ForCausalLM"),
]


def direct(model, ids: list[int]) -> np.ndarray:
    """Last hidden state of one text, by a call of the model that was saved."""
    kind = type(model).__name__
    part = "encoder" if kind.startswith("T5") else "text_model" if "CLIPM" in kind else "model"
    base = getattr(model, "text_model" if "Projection" in kind else part, model)
    with torch.no_grad():
        return base(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_the_last_hidden_states_of_each_text_alone(kind, tmp_path):
    """Neither the texts beside one nor padding change it."""
    model = write_encoder(tmp_path, kind)
    encoder = Transformers(str(tmp_path))
    assert encoder.width == WIDTH
    assert encoder.max_length == (12 if kind.startswith("CLIP") else 128)
    for text, tokens in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        ids = encoder.tokenizer(text).input_ids
        assert tokens.dtype == np.float32
        np.testing.assert_allclose(tokens, direct(model, ids), atol=2e-5)
        assert encoder.num_tokens(text) == (len(ids) if text else 0)


def test_a_text_is_cut_off_at_the_length_and_keeps_its_end(tmp_path):
    model = write_encoder(tmp_path, "CLIPTextModel")
    encoder = Transformers(str(tmp_path), max_length=5)
    (tokens,) = encoder.encode(TEXTS[:1])
    ids = encoder.tokenizer(TEXTS[0]).input_ids
    np.testing.assert_allclose(tokens, direct(model, [*ids[:4], ids[-1]]), atol=2e-5)
    assert encoder.num_tokens(TEXTS[0]) == len(ids) == 9


def test_a_pipeline_of_diffusers_is_read_from_its_folders(tmp_path):
    write_encoder(tmp_path / "text_encoder", "CLIPTextModel")
    write_tokenizer(tmp_path / "tokenizer", starts=True)
    whole, part = Transformers(str(tmp_path)), Transformers(str(tmp_path / "text_encoder"))
    np.testing.assert_array_equal(whole.encode(TEXTS)[0], part.encode(TEXTS)[0])
    assert whole.sha256 == part.sha256


def test_the_checksum_is_that_of_all_weights(tmp_path):
    model = write_encoder(tmp_path, "T5EncoderModel")
    first = Transformers(str(tmp_path)).sha256
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert len(parts) > 1
    second = Transformers(str(tmp_path)).sha256
    assert first != second
    with torch.no_grad():
        model.shared.weight.mul_(2)
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    assert Transformers(str(tmp_path)).sha256 not in (first, second)


def test_other_folders_are_refused(tmp_path):
    write_encoder(tmp_path, "CLIPTextModel")
    config = tmp_path / "config.json"
    fields = json.loads(config.read_text())
    with pytest.raises(ValueError, match=r"length from 2 tokens to 12, got 13"):
        Transformers(str(tmp_path), max_length=13)
    with pytest.raises(ValueError, match=r"there is no config\.json"):
        open_encoder(str(tmp_path / "nothing"))
    config.write_text(json.dumps({**fields, "architectures": ["BertModel"]}))
    with pytest.raises(ValueError, match=r"one of CLIPModel, .*, got BertModel; give another"):
        Transformers(str(tmp_path))
    config.write_text(json.dumps({**fields, "num_hidden_layers": 3}))
    with pytest.raises(ValueError, match=r"all its weights, 16 are missing, first .*layers\.2"):
        Transformers(str(tmp_path))
    config.write_text(json.dumps(fields))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="must hold the encoder's tokenizer"):
        Transformers(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match="must be safetensors, got none"):
        Transformers(str(tmp_path))


def test_damaged_weights_and_missing_devices_are_told_in_one_line(tmp_path):
    write_encoder(tmp_path, "CLIPTextModel")
    with pytest.raises(ValueError, match="cannot be loaded on nowhere") as told:
        Transformers(str(tmp_path), device="nowhere")
    assert "\n" not in str(told.value)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be loaded on cpu") as told:
        Transformers(str(tmp_path))
    assert "\n" not in str(told.value)


def test_without_transformers_the_extra_is_named(tmp_path, monkeypatch):
    write_encoder(tmp_path, "CLIPTextModel")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r'pip install -c constraints.txt "\.\[text\]"'):
        open_encoder(str(tmp_path))
    assert isinstance(open_encoder("words", 5), Words)
    assert open_encoder("words", 5).max_length == 5
