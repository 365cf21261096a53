# SPDX-License-Identifier: Apache-2.0
"""`scm sample`: a picture of samples of an exported network; no configuration, no Lightning."""

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from scm_lightning.data.pictures import are_clips, image_grid
from scm_lightning.data.prompts import prompt_lines
from scm_lightning.export.sampler import NUM_SAMPLES, SHIPPED, Sampler, load
from scm_lightning.given_files import given_path
from scm_lightning.saying import say
from scm_lightning.storage.export import SUFFIX
from scm_lightning.whole_files import FRAME_MILLISECONDS, written_whole

PICTURES = (".png", ".gif")


def sample(
    checkpoint: str | None = None,
    out: str = "samples.png",
    classes: str | None = None,
    prompt: str | None = None,
    prompts: str | None = None,
    n: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    guidance: float | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Draw samples of a network, and write a picture of them.

    Args:
        checkpoint: FILE.safetensors that `scm export` wrote; or the folder or a checkpoint of a
            run. By default a student of digits that comes with the package.
        out: file to write, FILE.png; FILE.gif for clips that move.
        classes: classes by name or number, with commas between them, in turn; by default all.
        prompt: text to draw by, of a network that takes text.
        prompts: text file with a prompt in each line, to draw by in turn.
        n: number of samples; by default 20, or one of each prompt.
        steps: number of steps; by default what the network was made for.
        seed: seed of the samples; the same give the same.
        guidance: scale of guidance; by default that of the run.
        device: cpu, cuda, or auto for a GPU if there is one.
        overwrite: replace a file that is there.

    Raises:
        ValueError: if the network is not there or cannot be sampled so, or if `out` is there
            already.
        OSError: if the picture cannot be written.
    """
    file = Path(given_path(out))
    if file.suffix not in PICTURES:
        raise ValueError(f"out must be a file FILE.png, or FILE.gif, got {out}; change its name")
    if file.exists() and not overwrite:
        raise ValueError(f"{out} is there already; give another name, or --overwrite")
    if prompt is not None and prompts is not None:
        raise ValueError(f"prompt is one text, prompts a file of them, got both: {prompts}")
    if n is None:
        n = None if prompts else NUM_SAMPLES
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    sampler = _sampler(str(SHIPPED) if checkpoint is None else checkpoint, device)
    texts = [*prompt_lines(prompts).values()] if prompts else [] if prompt is None else [prompt]
    named = _split(classes, sampler)
    x0 = sampler.sample_arrays(named, n, steps=steps, seed=seed, guidance=guidance, texts=texts)
    pictures = sampler.to_pictures(x0)
    in_turn = len(texts if texts else named or sampler.class_names) or 1
    _write(pictures, _columns(len(x0), in_turn), file, _again(texts, len(x0)))
    facts = sampler.facts
    licence = f"; its licence: {facts.licence}" if facts.licence else ""
    drawn = "1 sample" if len(x0) == 1 else f"{len(x0)} samples"
    say(f"{drawn} of a {facts.kind} network: {file}{licence}")


def _sampler(checkpoint: str, device: str) -> Sampler:
    """The network of an export, or of a run."""
    path = Path(given_path(checkpoint))
    if path.suffix == SUFFIX or not path.exists():
        return load(path, device=device)
    from scm_lightning.cli.export import exported  # slow: imports lightning

    found, _ = exported(checkpoint)
    try:
        return Sampler.of(found, device=device)
    except ValueError as error:
        raise ValueError(f"{path} cannot be sampled: {error}") from error


def _split(classes: str | None, sampler: Sampler) -> list[str] | None:
    """Names of classes that are written in one word; a name may have commas itself."""
    if classes is None:
        return None
    if classes in sampler.class_names:
        return [classes]
    return [each.strip() for each in classes.split(",") if each.strip()]


def _columns(n: int, in_turn: int) -> int:
    """Columns of a nearly square picture, in which a column is of one class, if these are few."""
    side = max(1, round(math.sqrt(n)))
    return side if in_turn > n else in_turn * max(1, round(side / in_turn))


def _again(texts: list[str], n: int) -> list[str]:
    return [texts[place % len(texts)] for place in range(n)] if texts else []


def _write(pictures: Any, columns: int, file: Path, texts: list[str]) -> None:
    """Write a picture, whole; of clips frame by frame, if it is one that moves."""
    if file.suffix == ".png":
        frames = [image_grid(pictures, columns, texts)]
    elif are_clips(pictures):
        each = range(pictures.shape[2])
        frames = [image_grid(pictures[:, :, frame], columns, texts) for frame in each]
    else:
        raise ValueError(f"{file} is for clips, and these samples do not move; give FILE.png")
    with written_whole(file) as beside:
        if file.suffix == ".png":
            frames[0].save(beside, "PNG")
        else:
            _save_moving(frames, beside)


def _save_moving(frames: list[Image.Image], file: Path) -> None:
    first, *others = frames
    first.save(
        file, "GIF", save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0
    )
