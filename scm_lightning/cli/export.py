# SPDX-License-Identifier: Apache-2.0
"""`scm export`: the weights of one network out of a checkpoint, as a safetensors file.

A checkpoint has all that a run needs to go on; the export has the network that one samples from,
the average by default, and as metadata what it is of: see `teachers.exports`. It is a `teacher:` of
a configuration, and for any program that knows the network

    network.load_state_dict(safetensors.torch.load_file("FILE.safetensors"))

Checkpoints of any strategy and number of processes, files and folders, are exported alike.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from torch import Tensor

from scm_lightning.cli.parsers import CommandParser
from scm_lightning.given_files import given_path
from scm_lightning.teachers import read_checkpoint
from scm_lightning.teachers.checkpoint import EMA_PREFIX, METADATA_KEY
from scm_lightning.teachers.exports import SUFFIX, Export, write_export

FURTHER_EMA = "further_emas.{}.network."
"""Where the modules keep averages that are only tracked."""


def run_export(args: Sequence[str]) -> None:
    """Parse the arguments of `scm export` and do it.

    Args:
        args: arguments after the word `export`.

    Raises:
        ValueError: if what the user passed does not fit.
    """
    parser = CommandParser(
        prog="scm export",
        description="Write the weights of a network out of a checkpoint as a safetensors file.",
    )
    parser.add_function_arguments(export, skip={"overwrite"})
    parser.add_argument("--overwrite", action="store_true", help="Replace a file that is there.")
    options = parser.parse_args(list(args))
    export(options.checkpoint, options.out, options.weights, options.ema, options.overwrite)


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
    content = read_checkpoint(checkpoint)
    state, metadata = content["state_dict"], content[METADATA_KEY]
    if weights == "trained":
        prefix, profile = _trained_prefix(metadata, checkpoint), ""
    else:
        prefix, profile = _average(metadata, ema, checkpoint)
    network = _below(prefix, state)
    if not network:
        raise ValueError(f"{checkpoint} is damaged: it has no weights at {prefix!r}; give another")
    found = _export(metadata, state, prefix, weights, profile)
    write_export(file, found, network)
    _report(found, network, file)


def _trained_prefix(metadata: Mapping[str, Any], checkpoint: str) -> str:
    if "trained" not in metadata:
        raise ValueError(
            f"{checkpoint} does not say which of its networks is trained, it is of an older "
            "version; export its average, or train on for a checkpoint of this version"
        )
    return f"{metadata['trained']}."


def _average(metadata: Mapping[str, Any], name: str | None, checkpoint: str) -> tuple[str, str]:
    """Where an average is among the weights, and the name of its profile."""
    profiles = list(metadata.get("averages", [""]))  # an older version does not name them
    if "reconstructed" in metadata:
        profiles[0] = f"{metadata['reconstructed']['sigma_rel']:g}"
    if name is not None and name not in profiles:
        raise ValueError(
            f"ema must be one of the averages of {checkpoint}, {_listed(profiles)}, got {name}"
        )
    place = 0 if name is None else profiles.index(name)
    return EMA_PREFIX if place == 0 else FURTHER_EMA.format(place - 1), profiles[place]


def _export(
    metadata: Mapping[str, Any],
    state: Mapping[str, Tensor],
    prefix: str,
    weights: Literal["ema", "trained"],
    profile: str,
) -> Export:
    """What the weights below a prefix are of."""
    if prefix == EMA_PREFIX and "reconstructed" in metadata:
        step = int(metadata["reconstructed"]["step"])
    else:
        counted_by = prefix if weights == "ema" else EMA_PREFIX
        step = int(state[f"{counted_by.removesuffix('network.')}num_steps"])
    return Export(metadata["module"], metadata["sigma_data"], step, weights, profile)


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): weight
        for name, weight in state.items()
        if name.startswith(prefix)
    }


def _listed(profiles: Sequence[str]) -> str:
    return ", ".join(profiles) if all(profiles) else "which has no names in an older version"


def _report(found: Export, network: Mapping[str, Tensor], file: Path) -> None:
    """Say what was written, and what for."""
    console = Console()
    table = Table("run", "weights", "profile", "step", "sigma_data", "numbers", "bytes")
    table.add_row(
        found.module,
        found.weights,
        found.profile or "-",
        f"{found.step:,}",
        f"{found.sigma_data:g}",
        f"{sum(weight.numel() for weight in network.values()):,}",
        f"{file.stat().st_size:,}",
    )
    console.print(table)
    use = (
        "give it as a student's teacher"
        if found.module == "diffusion"
        else f"network.load_state_dict(safetensors.torch.load_file({str(file)!r}))"
    )
    console.print(f"written to {file}; {use}", markup=False, soft_wrap=True)
