# SPDX-License-Identifier: Apache-2.0
"""Exports beyond one file: `scm export --format diffusers` and `--push_to_hub`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scm_lightning.export import SamplingFacts
from scm_lightning.saying import say
from scm_lightning.storage import Export


@contextmanager
def _installed() -> Iterator[None]:
    """Say on one line that diffusers is missing, with which huggingface_hub comes."""
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"a folder of diffusers and the hub need diffusers, which is not installed ({error}); "
            'run in the clone pip install -c constraints.txt ".[latents]"'
        ) from error


def check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a place for a folder of diffusers before any work.

    Raises:
        ValueError: if diffusers is missing, or something lies there.
    """
    with _installed():
        from scm_lightning.export.diffusers_folder import check_free
    check_free(folder, overwrite)


def check_hub(name: str | None) -> None:
    """Refuse what cannot be uploaded before any work; None is no upload.

    Raises:
        ValueError: if there is no token, or that is no name.
    """
    if name is None:
        return
    with _installed():
        from scm_lightning.export.hub import check_can_push
    check_can_push(name)


def write_diffusers(folder: Path, found: Export, name: str | None, overwrite: bool) -> None:
    """Write a folder of diffusers and say how it is loaded; upload it where a name is given.

    Args:
        folder: where.
        found: what is exported.
        name: repository on the hub; None for no upload.
        overwrite: replace a folder of that kind.

    Raises:
        ValueError: if that cannot be.
        OSError: likewise.
    """
    from scm_lightning.export.described import write_diffusers as write

    facts = SamplingFacts.of(found)
    difference = write(folder, found, facts, name or folder.name, overwrite)
    say(
        f"written to {folder}: its samples are those of the run to {difference:.1g} sigma_data; in "
        f"Python: DiffusionPipeline.from_pretrained({str(folder)!r}, trust_remote_code=True), "
        "which runs the pipeline.py in it"
    )
    if name is not None:
        from scm_lightning.export.hub import push

        say(f"uploaded to {push(folder, name, overwrite)}")


def push_file(file: Path, found: Export, name: str | None, overwrite: bool) -> None:
    """Upload a safetensors file with its card, where a name is given.

    Raises:
        ValueError: if the hub refuses.
    """
    if name is not None:
        from scm_lightning.export.described import push_file as push

        address = push(file, found, SamplingFacts.of(found), name, overwrite)
        say(f"uploaded to {address}")
