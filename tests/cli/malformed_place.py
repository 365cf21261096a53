# SPDX-License-Identifier: Apache-2.0
"""The files that malformed command lines name: shards, runs, and checkpoints that are none.

And commands that stop where they would do their work.
"""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_sets import write_set

import scm_lightning.cli.ablate as ablate_command
from scm_lightning.cli import main
from scm_lightning.cli.app import SCMCommandLine
from scm_lightning.modules import GenerativeModule

SHAPE = (1, 2, 3)
SIGMA_DATA = 0.7


class Trained(BaseException):
    """A command has begun to train, to draw samples or to start runs."""


@contextmanager
def parser_built_once() -> Iterator[None]:
    """Build the parser of the models' commands once: most of a second every time."""
    parser: dict[str, object] = {}
    build = SCMCommandLine.setup_parser

    def setup_parser(self, *args):
        if not parser:
            before = set(vars(self))
            build(self, *args)
            parser.update({name: each for name, each in vars(self).items() if name not in before})
        vars(self).update(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SCMCommandLine, "setup_parser", setup_parser)
        yield


@contextmanager
def stopped() -> Iterator[None]:
    """Build the parser once, and stop with `Trained` where a command would do its work."""

    def step(self, epoch, batch_idx, optimizer, closure):
        closure()
        raise Trained

    def work(*args):
        raise Trained

    with parser_built_once(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenerativeModule, "optimizer_step", step)
        patch.setattr(GenerativeModule, "draw", work)
        patch.setattr(ablate_command, "_run", work)
        yield


def base(folder: Path) -> dict:
    """A whole configuration of a student of 1 x 2 x 3 pixels in three classes."""
    network = {"data_shape": list(SHAPE), "model_channels": 8, "num_blocks": 1, "num_classes": 3}
    return {
        "model": {
            "class_path": "scm_lightning.modules.ConsistencyModule",
            "init_args": {
                "student": {
                    "class_path": "scm_lightning.networks.MLP",
                    "init_args": {**network, "emb_channels": 8},
                },
                "velocity": {"class_path": "scm_lightning.objectives.PairVelocity"},
                "objective": {"class_path": "scm_lightning.objectives.Consistency"},
                "path": {"sigma_data": SIGMA_DATA},
                "optimizer": {"class_path": "torch.optim.RAdam", "init_args": {"lr": 1e-3}},
                "ema": {
                    "class_path": "scm_lightning.modules.HalfLife",
                    "init_args": {"images": 100},
                },
            },
        },
        "data": {
            "class_path": "scm_lightning.data.Shards",
            "init_args": {"root": str(folder / "shards"), "batch_size": 5},
        },
        "metrics": {"kid": False},
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(folder / "new"),
            "max_steps": 1,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }


def make(folder: Path) -> None:
    """Write them all."""
    random = np.random.default_rng(0)
    labels = np.arange(40) % 3
    arrays = random.normal(size=(40, *SHAPE)).astype(np.float32)
    splits = {"train": (arrays, labels), "heldout": (arrays[:6], labels[:6])}
    write_set(folder / "shards", splits, 3, 1.0, 20)
    content = base(folder)
    (folder / "base.yaml").write_text(yaml.safe_dump(content))
    _train(folder, "run", [])
    _train(folder, "diffusion", _as_teacher(content["model"]["init_args"]))
    good = (folder / "run" / "checkpoints" / "last.ckpt").read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    (folder / "flipped.ckpt").write_bytes(flipped)
    (folder / "cut.ckpt").write_bytes(good[: len(good) // 2])
    (folder / "garbage.ckpt").write_bytes(random.bytes(3000))
    (folder / "empty.ckpt").write_bytes(b"")
    (folder / "pickled.ckpt").write_bytes(pickle.dumps({"state_dict": {}}))
    torch.save({"state_dict": {}}, folder / "foreign.ckpt")
    torch.save([1, 2], folder / "list.ckpt")
    torch.save({"scm_lightning": {}}, folder / "hollow.ckpt")
    (folder / "empty.yaml").write_text("")
    (folder / "folder.yaml").mkdir()


def _as_teacher(options: dict) -> list[str]:
    network = yaml.safe_dump(options["student"], default_flow_style=True, width=1000).strip()
    chosen = {
        "model": "scm_lightning.modules.DiffusionModule",
        "model.init_args.network": network,
        "model.init_args.path.sigma_data": SIGMA_DATA,
    }
    return [f"--{key}={value}" for key, value in chosen.items()]


def _train(folder: Path, name: str, options: list[str]) -> None:
    file = folder / "base.yaml"
    content = yaml.safe_load(file.read_text())
    if options:
        del content["model"]
        file = folder / "teacher.yaml"
        file.write_text(yaml.safe_dump(content))
    root = f"--trainer.default_root_dir={folder / name}"
    main(["fit", "--config", str(file), root, *options])
