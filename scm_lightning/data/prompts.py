# SPDX-License-Identifier: Apache-2.0
"""Prompts of a file, encoded by what encoded the captions of the data."""

from pathlib import Path

import numpy as np

from scm_lightning.data.index import ShardIndex
from scm_lightning.data.requests import Prompt
from scm_lightning.given_files import given_path, meant_path, read_regular
from scm_lightning.saying import say
from scm_lightning.text import TextEncoder, Transformers, Words

TEXT = "text"
"""Name of the condition that captions and prompts become: that of the networks' parameter."""
MAX_PROMPT_BYTES = 1 << 24


def read_prompts(file: str, index: ShardIndex, encoder: str | None = None) -> list[Prompt]:
    """Read a file with a prompt in each line, and encode them.

    Args:
        file: path of the file; blank lines are passed over.
        index: index of the data, which says how their captions were encoded.
        encoder: folder of the text encoder; None for the one in the index.

    Raises:
        ValueError: if the file cannot be read or has no prompts, one has no words, the data have no
            text, or their encoder is not there or has changed.
    """
    encoding, prompts, path = encoder_of(index, encoder), prompt_lines(file), given_path(file)
    lengths = {number: encoding.num_tokens(prompt) for number, prompt in prompts.items()}
    if wordless := [number for number, length in lengths.items() if not length]:
        raise ValueError(
            f"every prompt must have {encoding.units} in it, got {prompts[wordless[0]]!r:.40} in "
            f"line {wordless[0]} of {path}; write what to draw"
        )
    if long := [number for number, length in lengths.items() if length > encoding.max_length]:
        say(
            f"{len(long)} of {len(prompts)} prompts are cut off behind {encoding.max_length} "
            f"{encoding.units}, first that of line {long[0]} of {path}"
        )
    texts = [*prompts.values()]
    dtype = index.conditions[TEXT].dtype
    encoded = [np.asarray(tokens, dtype) for tokens in encoding.encode(texts)]
    return [Prompt(text, {TEXT: tokens}) for text, tokens in zip(texts, encoded, strict=True)]


def prompt_lines(file: str) -> dict[int, str]:
    """Read a file with a prompt in each line.

    Args:
        file: path of the file; blank lines are passed over.

    Returns:
        Prompts by the numbers of their lines, from 1.

    Raises:
        ValueError: if the file cannot be read or has no prompts.
    """
    path = given_path(file)
    try:
        lines = read_regular(Path(path), MAX_PROMPT_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"prompts must be a text file in UTF-8 with a prompt in each line, got {path}: {error}"
            f"{meant_path(path)}"
        ) from error
    prompts = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}
    if not prompts:
        raise ValueError(f"{path} must have a prompt in each line, got none; write one at least")
    return prompts


def encoder_of(index: ShardIndex, folder: str | None = None) -> TextEncoder:
    """Open the encoder of the captions of some data.

    Args:
        index: index of the data.
        folder: folder to take in the place of the one in the index.

    Raises:
        ValueError: if the data have no text, or the encoder is not there or another one.
    """
    stored = index.conditions.get(TEXT)
    if stored is None or not stored.encoder:
        raise ValueError(
            f"prompts need data with {TEXT}, which {index.source} was prepared without, or which "
            "data.init_args.conditions leaves out; prepare it with captions and a text_encoder"
        )
    length, width = stored.shape
    encoder: TextEncoder
    if stored.encoder == "words" and folder in (None, "words"):
        encoder = Words(width, length)
    else:
        try:
            encoder = Transformers(given_path(folder or stored.encoder), length)
        except ValueError as error:
            raise ValueError(
                f"{error}; if it was moved, give its new place as data.init_args.text_encoder"
            ) from error
    found, wanted = (encoder.width, encoder.sha256), (width, stored.encoder_sha256)
    if found != wanted:
        raise ValueError(
            f"prompts must be encoded as the captions were, by {stored.encoder} of width {width} "
            f"and SHA-256 {wanted[1][:12]}..., got {encoder.name} of width {found[0]} and "
            f"{found[1][:12]}...; give that one's folder as data.init_args.text_encoder"
        )
    return encoder
