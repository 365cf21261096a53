# SPDX-License-Identifier: Apache-2.0
"""A student as a folder of diffusers: network, scheduler, autoencoder, pipeline, card.

    FOLDER/model_index.json     components; times, guidance, statistics and names of classes
    FOLDER/pipeline.py          `SCMPipeline`, as it is in this package
    FOLDER/network/             a model of diffusers as itself, another as `SCMNetwork`
    FOLDER/scheduler/           SCMScheduler, owner of `sigma_data`
    FOLDER/vae/                 AutoencoderKL, if the data are latents
    FOLDER/README.md            the card, with samples.png

The folder is drawn from before it is there: samples of the pipeline, loaded again, must be those of
the run's own sampler.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before diffusers

# isort: on
import torch
from diffusers import SCMScheduler
from diffusers.utils.logging import disable_progress_bar, enable_progress_bar
from torch import Tensor, nn

from scm_lightning.core import Conditions, sample_generators, standard_normal
from scm_lightning.data.index import Latents, ShardIndex
from scm_lightning.data.latents import Autoencoder
from scm_lightning.export.facts import SamplingFacts, StudentSampling
from scm_lightning.export.network_of import build_network
from scm_lightning.export.pipeline import SCMPipeline
from scm_lightning.export.scm_network import SCMNetwork, plain_model
from scm_lightning.networks import DiffusersNetwork, ParametrizedNetwork
from scm_lightning.networks.condition_names import condition_names
from scm_lightning.networks.diffusers_layouts import SAME
from scm_lightning.networks.model_map import no_extras
from scm_lightning.networks.model_times import ModelTime
from scm_lightning.sampling import few_step_draw
from scm_lightning.storage import Export
from scm_lightning.whole_files import scratch_folder

INDEX = "model_index.json"
TOLERANCE = 1e-5
"""Largest difference from the run's own samples, in sigma_data: rounding of float32."""
STEPS = {
    "fresh_noise": "fresh_noise",
    "segments": "trigonometric",
    "equal_jumps": "average_velocity",
}
"""Kinds of steps, in the words of the pipeline."""
NUM_COMPARED = 3


def write_folder(
    folder: Path,
    export: Export,
    facts: SamplingFacts,
    describe: Callable[[SCMPipeline, float, Path], None],
    overwrite: bool = False,
) -> float:
    """Write a student as a folder of diffusers, whole or not at all.

    Args:
        folder: where.
        export: its weights.
        facts: what else is needed to sample it.
        describe: writes what else is to lie in the folder, given the loaded pipeline, its
            difference from the run's sampler, and where the folder is made.
        overwrite: replace a folder of that kind which is there.

    Returns:
        Largest difference between samples of the folder and of the run's sampler, in sigma_data.

    Raises:
        ValueError: if there is something at that place already, the network cannot be sampled from
            a folder of diffusers, or its samples there are others.
        OSError: if it cannot be written.
    """
    check_free(folder, overwrite)
    pipeline, network = pipeline_of(export, facts)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder.parent, f".{folder.name}.") as scratch:
        made = scratch / "made"
        made.mkdir()
        pipeline.save_pretrained(made)
        loaded = _loaded(made)
        difference = difference_from_run(loaded, network, facts)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"samples of the folder must be those of the run to {TOLERANCE:g} sigma_data, got "
                f"{difference:.2g}; export a safetensors file instead, and report this"
            )
        describe(loaded, difference, made)
        _open_to_others(made)
        if folder.exists():
            os.replace(folder, scratch / "old")
        os.replace(made, folder)
    return difference


def _loaded(folder: Path) -> SCMPipeline:
    """The pipeline of a folder, without bars on the screen."""
    disable_progress_bar()
    try:
        pipeline = SCMPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    finally:
        enable_progress_bar()
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline, SCMPipeline), "it loads no other"
    return pipeline


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse a place where something lies that must not be replaced.

    Raises:
        ValueError: if there is something, unless it is such a folder and to be replaced.
    """
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise ValueError(f"{folder} is there already; give another name, or --overwrite")
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"{folder} is no folder of diffusers, which has a {INDEX}, so that it is not replaced; "
            "give another name"
        )


def pipeline_of(export: Export, facts: SamplingFacts) -> tuple[SCMPipeline, nn.Module]:
    """The pipeline of a student, and the network that it is made of, as the run calls it.

    Args:
        export: its weights.
        facts: what else is needed to sample it.

    Raises:
        ValueError: if it is no student, is drawn by more than classes, or is not known well enough.
    """
    data, sampling = facts.data, facts.sampling
    if facts.kind != "consistency":
        raise ValueError(
            "a folder of diffusers is made of a student; a diffusion run needs a solver; "
            "export a file FILE.safetensors, and give that as a teacher"
        )
    if facts.network is None or data is None or not isinstance(sampling, StudentSampling):
        raise ValueError(
            "a folder of diffusers needs the network, the sampling and the shards of the run; give "
            "the run's own folder, with its config.yaml, where its shards lie"
        )
    network = build_network(facts.network, export.tensors)
    _check_conditions(network, data)
    autoencoder = None if data.latents is None else _autoencoder(data.latents)
    fields = sampling.fields(facts.path)
    end = [0.0] if fields["kind"] == "fresh_noise" else []  # jumps have it among their times
    times = {number: [*each, *end] for number, each in fields["times"].items()}
    module, calls, arguments = _module(network, facts.network, times)
    return SCMPipeline(
        module,
        SCMScheduler(sigma_data=facts.sigma_data),
        autoencoder,
        {str(number): name for number, name in enumerate(data.class_names)},
        {
            "steps": STEPS[fields["kind"]],
            "times": times,
            "guidance": sampling.scales,
            "tells_end": fields["kind"] != "fresh_noise" or fields["tells_end"],
            "calls": calls,
            "arguments": arguments,
        },
        {
            "shape": data.shape,
            "num_classes": data.num_classes,
            "mean": data.mean,
            "std": data.std,
            "max_value": data.max_value,
            "image_channels": data.image_shape[0],
        },
    ), network


def _check_conditions(network: nn.Module, data: ShardIndex) -> None:
    """Refuse a network that is given more than classes."""
    names = condition_names(network)
    if names.needed or data.conditions:
        given = ", ".join(names.needed or data.conditions)
        raise ValueError(
            f"a pipeline of this package draws by classes alone, but the network is given {given}; "
            "export a file FILE.safetensors"
        )


def _module(
    network: nn.Module, spec: Any, times: dict[str, list[float]]
) -> tuple[Any, dict[str, list[list[float]]] | None, dict[str, Any] | None]:
    """The network as a model of diffusers, how that is called at the times, and its arguments."""
    inner = network.network if isinstance(network, ParametrizedNetwork) else network
    if not (isinstance(inner, DiffusersNetwork) and _is_called_plainly(inner)):
        wrapped = SCMNetwork(spec["class_path"], spec.get("init_args"))
        wrapped.network.load_state_dict(network.state_dict())
        return wrapped.eval(), None, None
    its = inner.map
    calls = {
        number: [_call(network, its.told, torch.tensor([time])) for time in each[:-1]]
        for number, each in times.items()
    }
    names = {"sample": its.sample, "time": its.time, "labels": its.labels}
    return plain_model(inner), calls, {**names, "null_class": its.null_class}


def _call(network: nn.Module, told: ModelTime, t: Tensor) -> list[float]:
    """Time that the model is told; factors of u in its input, of u and of F in its output."""
    if not isinstance(network, ParametrizedNetwork):
        return [float(told(t)), 1.0, 0.0, 1.0]
    process = network.process
    known, divisor = (network.sign * float(each) for each in process.parts(t))
    time, scale = process.time_from_t(t), process.scale_from_t(t)
    return [float(told(time)), float(scale), known, divisor]


def _is_called_plainly(network: DiffusersNetwork) -> bool:
    """Tell whether data, time and classes are all that the model inside is called with."""
    its = network.map
    return its.layout is SAME and its.extras is no_extras and not its.guidance and its.inside == 1


def difference_from_run(pipeline: SCMPipeline, network: nn.Module, facts: SamplingFacts) -> float:
    """Compare samples of a pipeline with those that the run draws, in every number of steps.

    Args:
        pipeline: the pipeline.
        network: the run's network.
        facts: the way it is sampled.

    Returns:
        Largest difference, in sigma_data.
    """
    data, sampling = facts.data, facts.sampling
    assert data is not None, "pipeline_of refuses others"
    assert isinstance(sampling, StudentSampling), "pipeline_of refuses others"
    indices = range(NUM_COMPARED)
    labels = torch.arange(NUM_COMPARED) % data.num_classes if data.num_classes else None
    found = 0.0
    for number in map(int, pipeline.config.sampling["times"]):
        times, scale = sampling.times(number, facts.path), sampling.scale(number)
        draw = few_step_draw(network, sampling.steps, times, facts.path, scale)
        generators = sample_generators(indices, 0)
        noise = facts.sigma_data * standard_normal((NUM_COMPARED, *data.shape), generators)
        own = draw(noise, Conditions(labels), generators)
        drawn = pipeline(
            NUM_COMPARED,
            num_inference_steps=number,
            generator=sample_generators(indices, 0),
            output_type="latent",
        ).images
        size = own.abs().clamp(min=facts.sigma_data)  # large where a network is not trained
        found = max(found, float(((drawn - own).abs() / size).max()))
    return found


def _open_to_others(folder: Path) -> None:
    """Give files the modes that the user's umask says; those of safetensors are for one alone."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _autoencoder(latents: Latents) -> Any:
    """Model that decodes the latents as a pipeline of diffusers does."""
    if latents.pixels != "signed":
        raise ValueError(
            "a pipeline of diffusers decodes to images in [-1, 1], but these latents are of images "
            "in [0, 1]; export a file FILE.safetensors"
        )
    return Autoencoder.of(latents).model
