# SPDX-License-Identifier: Apache-2.0
"""`scm export`: the weights of one network out of a checkpoint, as a safetensors file or a folder.

A checkpoint has all that a run needs to go on; the export has the network that one samples from,
the average by default, and as metadata what it is of and how it is sampled: see `storage.export`
and `export.facts`. It is a `teacher:` of a configuration, a network to sample from,

    scm sample --checkpoint FILE.safetensors --out FILE.png
    scm_lightning.load("FILE.safetensors").sample(steps=2, seed=0)

and for any program that knows the network, a dictionary of tensors. A folder of diffusers is loaded
by `DiffusionPipeline.from_pretrained`; see `export.diffusers_folder`.

Checkpoints of any strategy and number of processes, files and folders, are exported alike.
"""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from scm_lightning.cli.next_steps import command, say_next, student_of
from scm_lightning.cli.publish import check_folder, check_hub, push_file, write_diffusers
from scm_lightning.cli.run_facts import checkpoint_in, configuration_of, facts_of
from scm_lightning.given_files import given_path
from scm_lightning.saying import say
from scm_lightning.storage import Export, SavedRun
from scm_lightning.storage.export import SUFFIX


def export(
    checkpoint: str,
    out: str,
    format: Literal["safetensors", "diffusers"] = "safetensors",  # noqa: A002  the option's name
    weights: Literal["ema", "trained"] = "ema",
    ema: str | None = None,
    config: str | None = None,
    push_to_hub: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the weights of a network out of a checkpoint.

    Args:
        checkpoint: folder of a run, of which the last is taken; a checkpoint of a run; or one that
            `scm reconstruct` wrote; for diffusers also a FILE.safetensors that was exported.
        out: file to write, FILE.safetensors; or folder, for diffusers.
        format: one safetensors file, or a student as a folder that diffusers loads.
        weights: ema for an average, trained for the network that the optimizer changes.
        ema: which average, by the name of its profile, for example 0.05; by default the one that
            is sampled from.
        config: configuration of the run, for a checkpoint that lies in no run's folder.
        push_to_hub: repository of the Hugging Face hub, OWNER/NAME, to make and to upload to, with
            a card.
        overwrite: replace a file, or such a folder, that is there; add to a repository that is.

    Raises:
        ValueError: if the checkpoint is missing or damaged, or has no such weights, if `out` is
            there already, or the hub refuses.
        OSError: if it cannot be written.
    """
    file = Path(given_path(out))
    check_hub(push_to_hub)
    if format == "diffusers":
        check_folder(file, overwrite)
        source = Path(given_path(checkpoint))
        if source.suffix == SUFFIX and (weights, ema, config) == ("ema", None, None):
            found = Export.read(source)
        else:
            found, _ = exported(checkpoint, weights, ema, config)
        write_diffusers(file, found, push_to_hub, overwrite)
        return
    if file.suffix != SUFFIX:
        raise ValueError(f"out must be a file FILE{SUFFIX}, got {out}; change its name")
    if file.exists() and not overwrite:
        raise ValueError(f"{out} is there already; give another name, or --overwrite")
    found, known = exported(checkpoint, weights, ema, config)
    found.write(file)
    push_file(file, found, push_to_hub, overwrite)
    is_teacher = found.module == "diffusion"
    use = f"; give it as a student's teacher: --model.init_args.teacher {shlex.quote(str(file))}"
    count = sum(weight.numel() for weight in found.tensors.values())
    kind = f"{found.weights} {found.profile}" if found.profile else found.weights
    say(
        f"written to {file}: {count:,} numbers, {kind} of a {found.module} run at step "
        f"{found.step:,}, sigma_data {found.sigma_data:g}{use if is_teacher else ''}"
    )
    if not {"network", "sampling"} <= found.entries.keys():
        say(f"in Python: network.load_state_dict(safetensors.torch.load_file({str(file)!r}))")
        return
    say(f"in Python: scm_lightning.load({str(file)!r}).sample() makes pictures")
    picture = str(file.with_suffix(".png"))
    student = student_of(known, str(file)) if is_teacher and known else None
    say_next(student, command("sample", "--checkpoint", str(file), "--out", picture))


def exported(
    checkpoint: str,
    weights: Literal["ema", "trained"] = "ema",
    ema: str | None = None,
    config: str | None = None,
) -> tuple[Export, dict[str, Any] | None]:
    """Read the network of a checkpoint, and all that is needed to sample it.

    Args:
        checkpoint: as of `export`.
        weights: likewise.
        ema: likewise.
        config: likewise.

    Returns:
        The export, and the configuration of its run, if there is one.

    Raises:
        ValueError: as `export`.
    """
    if weights == "trained" and ema is not None:
        raise ValueError(f"ema names an average, got {ema} with weights trained; give one of both")
    run = SavedRun.read(checkpoint_in(checkpoint))
    found = run.trained() if weights == "trained" else run.average(ema)
    known = configuration_of(run.path, config)
    is_scored = weights == "ema" and ema is None and run.reconstructed is None
    facts = facts_of(run, found, known, is_scored)
    return replace(found, entries=facts.entries()), known
