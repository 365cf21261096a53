# SPDX-License-Identifier: Apache-2.0
"""`scm convert`: a network of edm2_sCM as a run of this package.

    FOLDER/checkpoints/last.ckpt    its weights, as the trained network and as the average
    FOLDER/config.yaml              its network and module; the data are to be named

It runs under `scm test`, `predict` and `export`, is a `teacher:` if it is a diffusion model, and a
run trains on from it with `init: FOLDER/checkpoints/last.ckpt`. F is the same; weights in half
precision become float32.
"""

from pathlib import Path
from typing import Any, Literal

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: on
import lightning
import yaml  # type: ignore[import-untyped]

from scm_lightning.cli.next_steps import command, say_next
from scm_lightning.cli.run_config import FILE, HEADER, LAST_CHECKPOINT
from scm_lightning.core import TrigFlow
from scm_lightning.given_files import given_path
from scm_lightning.modules import ConsistencyModule, DiffusionModule
from scm_lightning.modules.loaded_checkpoints import name_in
from scm_lightning.saying import say
from scm_lightning.storage import Checkpoint
from scm_lightning.storage.saved_run import METADATA_KEY
from scm_lightning.teachers.edm2 import LICENCE
from scm_lightning.teachers.edm2_scm import EDM2SCMFile
from scm_lightning.whole_files import write_whole

ROOT = "FOLDER_OF_SHARDS"
"""Stands in a configuration for data that were not named."""


def convert(
    source: str,
    out: str,
    data: str | None = None,
    module: Literal["diffusion", "consistency"] | None = None,
) -> None:
    """Write a run's folder from a published file of edm2_sCM.

    Args:
        source: a teacher, or an sCT or sCD student: FILE.pkl.
        out: folder to write.
        data: shards of its data that `scm prepare` wrote, of pixels normalised by range; they can
            be named later.
        module: diffusion for a teacher, consistency for a student; by default what the file says.

    Raises:
        ValueError: if the file is of another kind, or there is a run in `out` already.
        OSError: if it cannot be read or written.
    """
    folder = Path(given_path(out))
    if (folder / LAST_CHECKPOINT).exists() or (folder / FILE).exists():
        raise ValueError(f"there is a run in {out} already; give another folder")
    found = EDM2SCMFile.read(source)
    if found.kind == "segments":
        raise ValueError(
            f"{source} is a multistep student, whose segments end at 1.5645 rad where those of "
            "`Segments` end at pi/2; give a teacher, or a student of sCT or sCD"
        )
    kind = module or found.kind
    if kind is None:
        raise ValueError(
            f"{source} does not say whether it is a teacher or a student; give --module diffusion "
            "or --module consistency"
        )
    (folder / LAST_CHECKPOINT).parent.mkdir(parents=True, exist_ok=True)
    Checkpoint(folder / LAST_CHECKPOINT).write(_checkpoint(found, kind))
    config = HEADER + yaml.safe_dump(_config(found, kind, data, folder), sort_keys=False)
    write_whole(folder / FILE, config)
    say(
        f"written to {folder}: a {kind} run with the network of {found.source}, sigma_data "
        f"{found.sigma_data:g}; licence {LICENCE}"
    )
    options = [] if data else ["--data.init_args.root", ROOT]
    say_next(
        command("predict", "--config", str(folder / FILE), *options),
        command(
            "export", "--checkpoint", str(folder), "--out", str(folder / "network.safetensors")
        ),
    )
    say(f"to train on from it, set init: {folder / LAST_CHECKPOINT} in a configuration")


def _checkpoint(found: EDM2SCMFile, kind: str) -> dict[str, Any]:
    """Content of a checkpoint of such a run, without an optimizer."""
    path = TrigFlow(found.sigma_data)
    model: ConsistencyModule | DiffusionModule = (
        ConsistencyModule(found.network, path=path)
        if kind == "consistency"
        else DiffusionModule(found.network, path)
    )
    return {
        "state_dict": model.state_dict(),
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
        METADATA_KEY: {
            "format_version": 1,
            "module": kind,
            "sigma_data": found.sigma_data,
            "trained": name_in(model, model.trained_network()),
            "averages": [average.profile.short_name for average in model.averages()],
            "optimizers": [],
            "licence": LICENCE,
            "converted": found.source,
            **model.parts_of_run(),
        },
    }


def _config(found: EDM2SCMFile, kind: str, data: str | None, folder: Path) -> dict[str, Any]:
    """The configuration that a run of this kind would have, with the class's own defaults."""
    is_student = kind == "consistency"
    network = {
        "class_path": f"scm_lightning.networks.{type(found.network).__name__}",
        "init_args": found.options,
    }
    module = ConsistencyModule if is_student else DiffusionModule
    given: dict[str, Any] = {
        "student" if is_student else "network": network,
        "path": {"sigma_data": found.sigma_data},
    }
    root = {"root": data or ROOT, "use_labels": bool(found.options["num_classes"])}
    return {
        "model": {
            "class_path": f"scm_lightning.modules.{module.__name__}",
            "init_args": given,
        },
        "data": {"class_path": "scm_lightning.data.Shards", "init_args": root},
        "trainer": {"default_root_dir": str(folder)},
    }
