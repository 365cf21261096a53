# SPDX-License-Identifier: Apache-2.0
"""Pretrained encoders of text in a local folder: CLIP, T5 and Gemma of the library transformers.

A text's tokens are the hidden states behind the encoder's last layer (and its norm), without those
of padding. Nothing is downloaded, no code of the folder is run, and weights are safetensors.
"""

import hashlib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scm_lightning.given_files import read_regular
from scm_lightning.text.encoder import Array, TextEncoder

ARCHITECTURES = {
    "CLIPModel": "CLIPTextModel",
    "CLIPTextModel": "CLIPTextModel",
    "CLIPTextModelWithProjection": "CLIPTextModel",
    "T5EncoderModel": "T5EncoderModel",
    "T5ForConditionalGeneration": "T5EncoderModel",
    "GemmaModel": "GemmaModel",
    "GemmaForCausalLM": "GemmaModel",
    "Gemma2Model": "Gemma2Model",
    "Gemma2ForCausalLM": "Gemma2Model",
}
"""Classes of transformers that a folder may be of, and the one that encodes its texts."""
MAX_LENGTH = 128
"""Most tokens of a text where neither the user nor the encoder limits them."""
MAX_CONFIG_BYTES = 1 << 20
CHUNK = 32
"""Texts that are encoded at once."""


class Transformers(TextEncoder):
    """A frozen encoder of transformers, with its tokenizer.

    Args:
        folder: folder with `config.json`, weights as safetensors and the tokenizer's files; or a
            pipeline of diffusers, which holds them in `text_encoder` and `tokenizer`.
        max_length: most tokens of a text, those that the tokenizer adds among them; None for 128,
            or as many as the encoder has places for, if fewer (CLIP: 77).
        device: where it computes.

    Raises:
        ValueError: if transformers is not installed, the folder holds no such encoder, it has
            places for fewer tokens, or there is no such device.
    """

    def __init__(self, folder: str, max_length: int | None = None, device: str = "cpu") -> None:
        whole = Path(folder)
        parts = whole / "text_encoder", whole / "tokenizer"
        of_model, of_tokenizer = parts if parts[0].is_dir() else (whole, whole)
        encoding_class = _encoding_class(of_model)
        self.name, self.device = folder, device
        self.sha256 = _weights_sha256(of_model)
        self.model = _loaded(encoding_class, of_model, device)
        self.tokenizer = _tokenizer(of_tokenizer)
        config = self.model.config
        self.width = config.hidden_size
        # Of CLIP's places each has weights; T5 and Gemma compute theirs.
        places = config.max_position_embeddings if encoding_class == "CLIPTextModel" else None
        self.max_length = (
            min(MAX_LENGTH, places or MAX_LENGTH) if max_length is None else max_length
        )
        if not 2 <= self.max_length <= (places or self.max_length):
            raise ValueError(
                f"texts for {folder} must have a length from 2 tokens to {places or 'any'}, got "
                f"{max_length}"
            )

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> list[Array]:
        """Encode texts; see `TextEncoder.encode`."""
        found = list[Array]()
        for start in range(0, len(texts), CHUNK):
            tokens = self.tokenizer(
                list(texts[start : start + CHUNK]),
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
            ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            found += [
                np.ascontiguousarray(each[kept.bool()].cpu().numpy())
                for each, kept in zip(hidden, mask, strict=True)
            ]
        return found

    def num_tokens(self, text: str) -> int:
        """Number of tokens of a text, with those that the tokenizer adds; 0 for blanks."""
        return len(self.tokenizer(text, verbose=False).input_ids) if text.strip() else 0


def _encoding_class(folder: Path) -> str:
    """Name of the class of transformers that encodes by the weights of a folder."""
    try:
        config = json.loads(read_regular(folder / "config.json", MAX_CONFIG_BYTES))
        architectures = [str(each) for each in config["architectures"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = "there is no config.json" if isinstance(error, FileNotFoundError) else error
        raise ValueError(
            f"{folder} must be `words` or a folder with a text encoder of transformers, got "
            f"another ({reason}); give the folder that save_pretrained wrote"
        ) from error
    known = [ARCHITECTURES[each] for each in architectures if each in ARCHITECTURES]
    if not known:
        raise ValueError(
            f"the text encoder {folder} must be one of {', '.join(ARCHITECTURES)}, got "
            f"{', '.join(architectures)[:80] or 'none'}; give another folder"
        )
    return known[0]


def _weights_sha256(folder: Path) -> str:
    """Checksum of the weights: of the file, or of the checksums of several."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"the weights of {folder} must be safetensors, got none; save the encoder again with "
            "save_pretrained"
        )
    digests = [_file_sha256(file) for file in files]
    return digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _file_sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def _loaded(name: str, folder: Path, device: str) -> Any:
    """The encoder, in float32 and frozen; refuses one without some of its weights."""
    try:
        model, found = getattr(_library(), name).from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
        model = model.to(device)
    # The library raises errors of its own, of safetensors, of torch, of many kinds.
    except Exception as error:
        raise ValueError(
            f"the text encoder {folder} cannot be loaded on {device}: {_line(error)}; give the "
            "folder that save_pretrained wrote"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(
            f"the text encoder {folder} must hold all its weights, {len(missing)} are missing, "
            f"first {missing[0]}; save it again with save_pretrained"
        )
    return model.eval().requires_grad_(False)


def _tokenizer(folder: Path) -> Any:
    """The tokenizer, which pads behind the text."""
    library = _library()
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # as above
        raise ValueError(
            f"{folder} must hold the encoder's tokenizer: {_line(error)}; save it there with "
            "save_pretrained"
        ) from error
    tokenizer.padding_side = "right"
    return tokenizer


def _library() -> Any:
    import scm_lightning.torchvision_guard  # noqa: F401  transformers imports torchvision

    try:
        library: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ValueError(
            "text encoders in folders need transformers, which is not installed; run in the clone "
            'pip install -c constraints.txt ".[text]", or take the encoder `words`'
        ) from error
    library.utils.logging.disable_progress_bar()  # of the weights: seconds at most
    return library


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
