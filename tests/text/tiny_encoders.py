# SPDX-License-Identifier: Apache-2.0
"""Tiny random encoders of transformers, written to disk as save_pretrained writes them."""

from pathlib import Path
from typing import Any

import pytest
import torch

VOCABULARY = ["<pad>", "</s>", "<s>", "<unk>", "a", "red", "blue", "cat", "dog", "with", "hat"]
WIDTH = 16


def write_tokenizer(folder: Path, starts: bool) -> None:
    """Words of a small vocabulary; with or without a token at the start, always one at the end."""
    import scm_lightning.torchvision_guard  # noqa: F401

    tokenizers, transformers = (
        pytest.importorskip("tokenizers"),
        pytest.importorskip("transformers"),
    )
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({each: n for n, each in enumerate(VOCABULARY)}, "<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>" if starts else "$A </s>",
        special_tokens=[("<s>", 2), ("</s>", 1)],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
        padding_side="left",  # as Gemma's
    ).save_pretrained(folder)


def write_encoder(folder: Path, kind: str) -> Any:
    """Write an encoder of a kind, and hand back the whole model that was saved."""
    write_tokenizer(folder, starts=kind != "T5EncoderModel")
    import transformers

    torch.manual_seed(0)
    tokens = {
        "vocab_size": len(VOCABULARY),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    common = {**tokens, "hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
    if kind.startswith("CLIPText"):
        config = transformers.CLIPTextConfig(
            **common, intermediate_size=32, max_position_embeddings=12, projection_dim=8
        )
    elif kind == "CLIPModel":
        text = {**common, "intermediate_size": 32, "max_position_embeddings": 12}
        vision = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
        vision |= {"image_size": 8, "patch_size": 4, "intermediate_size": 8}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    elif kind.startswith("T5"):
        config = transformers.T5Config(
            **tokens, d_model=WIDTH, d_kv=8, d_ff=32, num_heads=2, num_layers=2, dropout_rate=0.0,
            decoder_start_token_id=0,
        )  # fmt: skip
    else:
        family = "Gemma2Config" if kind.startswith("Gemma2") else "GemmaConfig"
        config = getattr(transformers, family)(**common, **heads, intermediate_size=32)
    model = getattr(transformers, kind)(config).eval()
    for weight in model.parameters():  # so that no layer is nearly silent
        torch.nn.init.normal_(weight, 1.0 if weight.ndim == 1 else 0.0, 0.3)
    model.save_pretrained(folder)
    return model
