# SPDX-License-Identifier: Apache-2.0
"""`scm export`: the weights of one network out of a checkpoint, as a safetensors file.

A checkpoint has all that a run needs to go on; the export has the network that one samples from,
the average by default, and as metadata what it is of: see `storage.export`. It is a `teacher:` of
a configuration, and for any program that knows the network

    network.load_state_dict(safetensors.torch.load_file("FILE.safetensors"))

Checkpoints of any strategy and number of processes, files and folders, are exported alike.
"""

import shlex
from pathlib import Path
from typing import Literal

from scm_lightning.cli.next_steps import run_in, say_next, student_of
from scm_lightning.given_files import given_path
from scm_lightning.saying import say
from scm_lightning.storage import SavedRun
from scm_lightning.storage.export import SUFFIX


def export(
    checkpoint: str,
    out: str,
    weights: Literal["ema", "trained"] = "ema",
    ema: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write the weights of a network out of a checkpoint.

    Args:
        checkpoint: checkpoint of a run, or one that `scm reconstruct` wrote.
        out: file to write, FILE.safetensors.
        weights: ema for an average, trained for the network that the optimizer changes.
        ema: which average, by the name of its profile, for example 0.05; by default the one that
            is sampled from.
        overwrite: replace a file that is there.

    Raises:
        ValueError: if the checkpoint is missing or damaged, or has no such weights, or if `out` is
            there already.
        OSError: if it cannot be written.
    """
    checkpoint, file = given_path(checkpoint), Path(given_path(out))
    if file.suffix != SUFFIX:
        raise ValueError(f"out must be a file FILE{SUFFIX}, got {out}; change its name")
    if file.exists() and not overwrite:
        raise ValueError(f"{out} is there already; give another name, or --overwrite")
    if weights == "trained" and ema is not None:
        raise ValueError(f"ema names an average, got {ema} with weights trained; give one of both")
    run = SavedRun.read(checkpoint)
    found = run.trained() if weights == "trained" else run.average(ema)
    found.write(file)
    use = (
        f"give it as a student's teacher: --model.init_args.teacher {shlex.quote(str(file))}"
        if found.module == "diffusion"
        else f"in Python: network.load_state_dict(safetensors.torch.load_file({str(file)!r}))"
    )
    count = sum(weight.numel() for weight in found.tensors.values())
    kind = f"{found.weights} {found.profile}" if found.profile else found.weights
    say(
        f"written to {file}: {count:,} numbers, {kind} of a {found.module} run at step "
        f"{found.step:,}, sigma_data {found.sigma_data:g}; {use}"
    )
    if found.module == "diffusion" and (config := run_in(Path(checkpoint).parent.parent)):
        say_next(student_of(config, str(file)))
