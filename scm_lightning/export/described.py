# SPDX-License-Identifier: Apache-2.0
"""Exports with their cards: a folder of diffusers, and a safetensors file on its way to the hub."""

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scm_lightning.core import sample_generators
from scm_lightning.data.pictures import image_grid
from scm_lightning.export.card import CARD, PICTURE, card
from scm_lightning.export.diffusers_folder import NUM_COMPARED, write_folder
from scm_lightning.export.facts import SamplingFacts, StudentSampling
from scm_lightning.export.hub import push
from scm_lightning.export.sampler import Sampler
from scm_lightning.storage import Export
from scm_lightning.whole_files import scratch_folder, write_picture, write_whole

if TYPE_CHECKING:
    from scm_lightning.export.pipeline import SCMPipeline

NUM_DRAWN, COLUMNS = 20, 10
OWN = "scm_lightning"


def write_diffusers(
    folder: Path, export: Export, facts: SamplingFacts, name: str, overwrite: bool = False
) -> float:
    """Write a student as a folder of diffusers with a card; see `write_folder`.

    Args:
        folder: where.
        export: its weights.
        facts: what else is needed to sample it.
        name: what it will be loaded by: a repository of the hub, or a path.
        overwrite: replace a folder of that kind which is there.

    Returns:
        Largest difference between samples of the folder and of the run's sampler, in sigma_data.
    """
    describe = partial(_describe, export=export, facts=facts, name=name)
    return write_folder(folder, export, facts, describe, overwrite)


def _describe(
    pipeline: "SCMPipeline",
    difference: float,
    made: Path,
    *,
    export: Export,
    facts: SamplingFacts,
    name: str,
) -> None:
    assert isinstance(facts.sampling, StudentSampling), "a pipeline is that of a student"
    assert facts.data is not None, "a pipeline has a shape"
    steps = max(facts.sampling.num_steps)
    kind = "pt" if facts.data.shows_pixels or facts.data.latents else "latent"

    def draw() -> Any:
        generators = sample_generators(range(NUM_DRAWN), 0)
        drawn = pipeline(
            NUM_DRAWN, num_inference_steps=steps, generator=generators, output_type=kind
        ).images
        shown = drawn if kind == "pt" else (0.5 + drawn / (4 * facts.sigma_data)).clamp(0, 1)
        return image_grid(shown, COLUMNS)

    is_drawn = write_picture(made / PICTURE, draw)
    own = not pipeline.config.network[0].startswith("diffusers")
    remarks = [
        f"{NUM_DRAWN} samples in {steps} steps are shown, numbers 0 to {NUM_DRAWN - 1} of the seed "
        "0, none chosen.",
        "Samples of this folder differ from those of the run's own sampler by at most "
        f"{difference:.1g} sigma_data, measured in {NUM_COMPARED} when it was written.",
    ]
    text = card(
        title=name,
        export=export,
        facts=facts,
        library="diffusers",
        use=_use_of_folder(name, facts, steps, own),
        is_drawn=is_drawn,
        remarks=remarks,
    )
    write_whole(made / CARD, text)


def _use_of_folder(name: str, facts: SamplingFacts, steps: int, own: bool) -> dict[str, str]:
    """Lines that load a folder and draw from it, by what is said before them."""
    are_images = facts.data is not None and facts.data.are_images
    needs = f"It needs {OWN}, whose network it has. " if own else ""
    output = "" if are_images else ', output_type="latent"'
    drawn = f"""
noise = [torch.Generator().manual_seed(number) for number in range(4)]
samples = pipeline(4, num_inference_steps={steps}, generator=noise{output}).images
""" + ('samples[0].save("sample.png")' if are_images else "print(samples.shape)")
    first = f"""
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({name!r}, trust_remote_code=True)
"""
    second = f"""
import torch
from {OWN}.export.diffusers_folder import SCMPipeline

pipeline = SCMPipeline.from_pretrained({name!r})
"""
    said = "`trust_remote_code` runs `pipeline.py`, which is here to be read first."
    return {
        f"{needs}{said}": first.strip() + drawn,
        f"With {OWN}, whose own pipeline runs no code from here:": second.strip() + drawn,
    }


def push_file(
    file: Path, export: Export, facts: SamplingFacts, name: str, overwrite: bool = False
) -> str:
    """Upload a safetensors file with its card.

    Args:
        file: the file, which is whole.
        export: what is in it.
        facts: likewise.
        name: repository of the hub.
        overwrite: add to a repository that is there.

    Returns:
        Address of the repository.

    Raises:
        ValueError: as `push`.
    """
    with scratch_folder(file.absolute().parent, f".{file.name}.") as made:
        shutil.copyfile(file, made / file.name)
        is_drawn = write_picture(made / PICTURE, partial(_grid, export))
        use = {"By scm_lightning:": _use_of_file(name, file.name)} if is_drawn else {}
        text = card(title=name, export=export, facts=facts, library=OWN, use=use, is_drawn=is_drawn)
        write_whole(made / CARD, text)
        return push(made, name, overwrite)


def _grid(export: Export) -> Any:
    sampler = Sampler.of(export)
    return image_grid(sampler.to_pictures(sampler.sample_arrays(n=NUM_DRAWN)), COLUMNS)


def _use_of_file(name: str, file: str) -> str:
    return f"""
import scm_lightning
from huggingface_hub import hf_hub_download

file = hf_hub_download({name!r}, {file!r})
scm_lightning.load(file).sample(n=4, seed=0)[0].save("sample.png")
"""
