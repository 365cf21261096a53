# SPDX-License-Identifier: Apache-2.0
"""Facts about a run's network for those who sample from it: out of its checkpoint, folder and data.

RUN/checkpoints/last.ckpt    weights, kind, step, licence
RUN/config.yaml              network, ways to sample, root of the data
ROOT/shards.json             shape, mean and std, class names, conditions
RUN/metrics.json             scores, if `scm test` has measured these weights
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from scm_lightning.cli.next_steps import run_in
from scm_lightning.cli.parsers import CommandParser
from scm_lightning.cli.run_config import FILE, LAST_CHECKPOINT
from scm_lightning.cli.strict_yaml import read_yaml
from scm_lightning.cli.templates import NETWORKS, value_of
from scm_lightning.data.index import INDEX_FILE, ShardIndex
from scm_lightning.data.location import is_remote
from scm_lightning.export import SamplingFacts, StudentSampling, can_be_built
from scm_lightning.given_files import given_path, meant_path, read_regular
from scm_lightning.objectives import Consistency, Objective
from scm_lightning.sampling import Churn, DiffusionSampling, EqualJumps, FewStepSampling, FreshNoise
from scm_lightning.sampling.steps import Jumps, SegmentJumps
from scm_lightning.saying import say
from scm_lightning.storage import Export, SavedRun

MAX_SCORES_BYTES = 1 << 20
OURS = (FreshNoise, EqualJumps, SegmentJumps)
INIT = "model.init_args"


def checkpoint_in(path: str) -> Path:
    """The checkpoint that a user names: a file, a folder of one, or the last of a run's folder."""
    given = Path(given_path(path))
    last = given / LAST_CHECKPOINT
    return last if last.exists() else given


def configuration_of(checkpoint: Path, given: str | None = None) -> dict[str, Any] | None:
    """The configuration of a checkpoint's run; None if there is none.

    Args:
        checkpoint: file or folder, in a run's folder or elsewhere.
        given: path of another one; None for that of the run's folder.

    Raises:
        ValueError: if the file cannot be read.
    """
    if given is None:
        return run_in(checkpoint.parent.parent)
    file = Path(given_path(given))
    if not file.is_file():
        raise ValueError(f"there is no configuration {file}{meant_path(file)}; give a file")
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} must be a configuration in YAML; give a run's {FILE}")
    return content


def facts_of(
    run: SavedRun, found: Export, config: Mapping[str, Any] | None, is_scored: bool = False
) -> SamplingFacts:
    """Gather the facts; a line says what is not found.

    Args:
        run: the checkpoint.
        found: the network out of it.
        config: configuration of its run; None if not known.
        is_scored: whether these are the weights that `scm test` takes.
    """
    licence = run.metadata.get("licence")
    training: dict[str, Any] = {"step": found.step, "objective": run.metadata.get("objective")}
    if (images := run.content["state_dict"].get("ema.num_images")) is not None:
        training["images"] = int(images)
    facts = SamplingFacts(
        found.module,
        found.sigma_data,
        training=_known(training),
        scores=_scores(run.path) if is_scored else {},
        licence=None if licence is None else str(licence),
    )
    if config is None:
        say(
            f"{run.path} lies in no run's folder, so the file does not say how it is sampled; name "
            f"the configuration with --config, or copy it beside as {FILE}"
        )
        return facts
    network = next(filter(None, (value_of(config, key) for key in NETWORKS)), None)
    index, spec = _index(config, run.path.parent.parent), _spec(network)
    if not can_be_built(spec):
        say(
            "the network is of a class of your own, by name in the file alone: who loads it gives "
            "the network, scm_lightning.load(FILE, network=...)"
        )
    return replace(
        facts,
        network=spec,
        sampling=_sampling(config, found.module),
        data=index,
        training={**facts.training, **_of_training(config, index)},
    )


def _spec(network: Any) -> dict[str, Any] | None:
    if isinstance(network, str):
        return {"class_path": network, "init_args": {}}
    if not isinstance(network, Mapping):
        return None
    return {"class_path": network["class_path"], "init_args": network.get("init_args") or {}}


def _sampling(config: Mapping[str, Any], kind: str) -> StudentSampling | DiffusionSampling | None:
    given = value_of(config, f"{INIT}.sampling") or {}
    if kind == "diffusion":
        churn = given.get("churn")
        chosen = {
            name: given[name] for name in ("num_steps", "solver", "guidance") if name in given
        }
        return DiffusionSampling(**chosen, churn=Churn(**churn) if churn else None)
    steps = _objective(config).steps
    if not isinstance(steps, OURS):
        say(
            f"steps of the class {type(steps).__name__} are not known to those who sample, so the "
            "file does not say how it is sampled"
        )
        return None
    chosen = {n: given[n] for n in ("num_steps", "intermediate_times", "guidance") if n in given}
    asked = FewStepSampling(**chosen)
    between = value_of(config, f"{INIT}.guidance")
    intermediate = () if isinstance(steps, Jumps) else tuple(asked.intermediate_times)
    return StudentSampling(
        steps,
        tuple(steps.own_numbers(asked.num_steps, intermediate)),
        intermediate,
        tuple(asked.scales) if between else None,
        (between.get("low", 1.0), between.get("high", 2.0)) if between else None,
    )


def _objective(config: Mapping[str, Any]) -> Objective:
    spec = value_of(config, f"{INIT}.objective")
    if spec is None:
        return Consistency()
    parser = CommandParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    built: Objective = parser.instantiate(parser.parse_object({"objective": spec})).objective
    return built


def _index(config: Mapping[str, Any], folder: Path) -> ShardIndex | None:
    """Index of a run's data as they reach the network; None if it is not there."""
    root = value_of(config, "data.init_args.root")
    places = [given_path(root)] if isinstance(root, str) else []
    if places and not is_remote(places[0]):  # a run is often moved with its data
        places += [str(base / places[0]) for base in folder.absolute().parents[:3]]
        places = [each for each in places if (Path(each) / INDEX_FILE).is_file()]
    if not places:
        say(
            "the data of the run are no shards with a root, so the export does not say how samples "
            "become pictures"
            if root is None
            else f"the data of the run are not at {root}, so the export does not say how samples "
            "become pictures; export it where they lie"
        )
        return None
    index = ShardIndex.read(places[0])
    names = value_of(config, "data.init_args.conditions")
    if names is not None:
        index = index.with_conditions(names)
    if value_of(config, "data.init_args.use_labels") is False:
        index = replace(index, num_classes=0, class_names=[])
    return index


def _of_training(config: Mapping[str, Any], index: ShardIndex | None) -> dict[str, Any]:
    """Data, teacher and options that trained the network, by name."""
    return _known(
        {
            "batch_size": value_of(config, "data.init_args.batch_size"),
            "seed": value_of(config, "seed_everything"),
            "velocity": _name(value_of(config, f"{INIT}.velocity")),
            "teacher": _name(value_of(config, f"{INIT}.teacher")),
            "data": None if index is None else index.source,
            "data_checksum": None if index is None else index.source_checksum,
            "data_samples": None if index is None else index.splits["train"].num_samples,
        }
    )


def _name(given: Any) -> str | None:
    """Name of an object or file in a configuration, without the folders of this machine."""
    if isinstance(given, Mapping):
        file = (given.get("init_args") or {}).get("path")
        name = str(given.get("class_path")).rpartition(".")[2]
        return f"{name} {Path(file).name}" if isinstance(file, str) else name
    if not isinstance(given, str):
        return None
    return str(Path(*Path(given).parts[-3:])) if "/" in given else given.rpartition(".")[2]


def _scores(checkpoint: Path) -> dict[str, Any]:
    """Content of the run's metrics.json, if it was measured of this checkpoint as it is."""
    file = checkpoint.parent.parent / "metrics.json"
    try:
        content = json.loads(read_regular(file, MAX_SCORES_BYTES))
        measured = Path(content["protocol"]["checkpoint"]).name
        is_of_it = measured == checkpoint.name
        is_of_it &= file.stat().st_mtime >= checkpoint.stat().st_mtime
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return dict(content) if is_of_it else {}


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in facts.items() if each not in (None, "")}
