# SPDX-License-Identifier: Apache-2.0
"""Starting points: a small trained file of every source, and a student by the command line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule
from teachers import sources_dit as dit
from teachers import sources_edm as edm
from teachers import sources_edm2 as edm2
from teachers.sources_diffusers import KINDS, write_diffusers
from teachers.sources_dit import write_dit
from teachers.sources_edm import write_edm
from teachers.sources_edm2 import write_edm2, write_edm2_scm
from teachers.toy import toy_data
from torch.optim import RAdam
from torch.utils.data import DataLoader

import scm_lightning.teachers
from scm_lightning import ConsistencyModule, TrigFlow
from scm_lightning.cli import main
from scm_lightning.core import GuidanceProposal, TangentWarmup
from scm_lightning.data import Batch
from scm_lightning.objectives import Consistency, TeacherVelocity

Init = dict[str, Any]
UNET: Init = {
    "class_path": "scm_lightning.networks.UNet",
    "init_args": {
        "model_channels": 16,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attention_pixels": [8],
        "dropout": 0.0,
    },
}
"""A student of an architecture of its own."""


class ToyData(LightningDataModule):
    """Batches of `toy_data`, with random conditions that say nothing."""

    def __init__(
        self,
        shape: list[int],
        num_classes: int,
        sigma_data: float = 0.5,
        with_labels: bool = True,
        conditions: dict[str, list[int]] | None = None,
    ) -> None:
        super().__init__()
        self.shape, self.num_patterns, self.with_labels = shape, num_classes, with_labels
        self.sigma_data, self.conditions = sigma_data, conditions or {}

    def train_dataloader(self) -> DataLoader[Batch]:
        """24 samples in a batch, of which there are 20."""
        generator = torch.Generator().manual_seed(2)
        given = {
            name: torch.randn(24, *shape, generator=generator)
            for name, shape in self.conditions.items()
        }
        batches = []
        for step in range(20):
            x0, labels = toy_data(24, self.shape, self.num_patterns, self.sigma_data, seed=step)
            batches.append(Batch(x0, labels if self.with_labels else None, conditions=given))
        return DataLoader(batches, batch_size=None)


@dataclass(frozen=True)
class Start:
    """One source.

    Args:
        name: what the table calls it.
        write: writes its file or folder into a folder, and returns the path.
        kind: class of its teacher.
        shape: of its data.
        num_classes: classes of its data; 0 for a model without.
        sigma_data: of its data.
        student: class and options of a student; None for one of an architecture of its own.
        guidance: what stands for none; empty if guidance is refused.
        conditions: shapes of one sample's, by name.
        further: options of the teacher beside its path, from the folder.
    """

    name: str
    write: Callable[[Path], Path]
    kind: str
    shape: tuple[int, ...]
    num_classes: int
    sigma_data: float
    student: Init | None = None
    guidance: str = ""
    conditions: dict[str, tuple[int, ...]] = field(default_factory=dict)
    further: Callable[[Path], Init] = lambda folder: {}

    def config(self, folder: Path, path: Path, steps: int = 20, **options: Any) -> Init:
        """Configuration of sCD from it.

        Args:
            folder: of the run, and of further files.
            path: what `write` returned.
            steps: steps of training.
            options: of the model, in place of those here.
        """
        guided = bool(self.guidance)
        student = self.student or UNET
        own = {"data_shape": list(self.shape), "num_classes": self.num_classes}
        if self.conditions:
            own["text_channels"] = self.conditions["text"][-1]
        if self.student is None:
            options = {"init": None, **options}
        if student["class_path"].endswith("DiffusersStudent"):
            guided, own = False, {"path": str(path), "sigma_data": self.sigma_data}
            student = {**student, "init_args": own}
        else:
            student = {**student, "init_args": {**own, **student["init_args"], "guided": guided}}
        guidance = {"guidance": {"low": 1.0, "high": 2.0}} if guided else {}
        teacher = {"path": str(path), **self.further(folder)}
        return {
            "model": {
                "class_path": "scm_lightning.modules.ConsistencyModule",
                "init_args": {
                    "student": student,
                    "velocity": {"class_path": "scm_lightning.objectives.TeacherVelocity"},
                    "teacher": {"class_path": self.kind, "init_args": teacher},
                    "path": {"sigma_data": self.sigma_data},
                    "optimizer": {
                        "class_path": "torch.optim.RAdam",
                        "init_args": {"lr": 2e-3, "betas": [0.9, 0.99]},
                    },
                    **guidance,
                    **options,
                },
            },
            "data": {
                "class_path": "teachers.starts.ToyData",
                "init_args": {
                    "shape": list(self.shape),
                    "num_classes": max(self.num_classes, 3),
                    "with_labels": bool(self.num_classes),
                    "conditions": {n: list(shape) for n, shape in self.conditions.items()},
                },
            },
            "trainer": {
                "default_root_dir": str(folder / "run"),
                "accelerator": "cpu",
                "max_steps": steps,
                "max_epochs": -1,
                "log_every_n_steps": 1,
                "limit_val_batches": 0,
                "num_sanity_val_steps": 0,
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
        }

    def module(self, folder: Path, path: Path) -> tuple[ConsistencyModule, ToyData]:
        """The same in Python: a module, with a full tangent from the first step, and its data.

        Args:
            folder: of further files.
            path: what `write` returned.
        """
        given = self.config(folder, path)
        options, data = given["model"]["init_args"], given["data"]["init_args"]
        student = options["student"]
        teacher = getattr(scm_lightning.teachers, self.kind)(**options["teacher"]["init_args"])
        module = ConsistencyModule(
            resolve_name(student["class_path"])(**student["init_args"]),
            TeacherVelocity(),
            teacher,
            Consistency(warmup=TangentWarmup(1)),
            options.get("init", "teacher"),
            TrigFlow(self.sigma_data),
            GuidanceProposal() if "guidance" in options else None,
            optimizer=partial(RAdam, lr=1e-3, betas=(0.9, 0.99)),
        )
        return module, ToyData(**data, sigma_data=self.sigma_data)

    @staticmethod
    def run(folder: Path, config: Init) -> None:
        """Distil by `scm fit`."""
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(config))
        main(["fit", "--config", str(file)])


def _student_of_ours(kind: str, **options: Any) -> Init:
    return {"class_path": f"scm_lightning.networks.{kind}", "init_args": options}


def _of_diffusers(name: str, kind: str, num_classes: int, guidance: str) -> Start:
    its = KINDS[kind]
    return Start(
        f"diffusers {name}",
        lambda folder: write_diffusers(folder / "pipeline", kind, steps=300),
        "DiffusersTeacher",
        its.shape,
        num_classes,
        0.7,
        {"class_path": "scm_lightning.teachers.DiffusersStudent"},
        guidance=guidance,
        conditions=dict(its.conditions),
    )


SIZES = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attention_pixels": [8]}
DDPMPP = _student_of_ours("UNet", dropout=0.0, augment_channels=9, **{**SIZES, "model_channels": 8})
EDM2 = _student_of_ours("EDM2UNet", channels_per_head=16, **SIZES)
UNSCALED = _student_of_ours("EDM2UNet", channels_per_head=16, modulation="unscaled", **SIZES)
NETWORK, NONE, TEXT = "a second network", "a row of its own", "the null text"


STARTS = [
    Start("EDM DDPM++", write_edm, "EDMTeacher", edm.SHAPE, edm.CLASSES, 0.5, DDPMPP),
    Start(
        "EDM NCSN++",
        lambda folder: write_edm(folder, "ncsnpp"),
        *("EDMTeacher", edm.SHAPE, edm.CLASSES, 0.5),
    ),
    Start(
        "EDM ADM",
        lambda folder: write_edm(folder, "adm"),
        *("EDMTeacher", edm.SHAPE, edm.CLASSES, 0.5),
    ),
    Start(
        "EDM2",
        write_edm2,
        *("EDM2Teacher", edm2.SHAPE, edm2.NUM_CLASSES, edm2.SIGMA_DATA, EDM2, NETWORK),
        further=lambda folder: {"unconditional": str(write_edm2(folder, num_classes=0))},
    ),
    Start(
        "edm2_sCM EDM2",
        write_edm2_scm,
        *("EDM2SCMTeacher", edm2.SHAPE, edm2.NUM_CLASSES, edm2.SIGMA_DATA, UNSCALED),
    ),
    Start(
        "DiT",
        write_dit,
        *("DiTTeacher", dit.SHAPE, dit.CLASSES, 0.7),
        guidance=NONE,
        further=lambda folder: {"num_heads": dit.HEADS},
    ),
    Start(
        "SiT",
        lambda folder: write_dit(folder, "sit"),
        *("SiTTeacher", dit.SHAPE, dit.CLASSES, 0.7),
        guidance=NONE,
        further=lambda folder: {"num_heads": dit.HEADS},
    ),
    _of_diffusers("UNet2DModel, epsilon", "epsilon", 3, "zeros"),
    _of_diffusers("UNet2DConditionModel, v_prediction", "v_prediction", 0, TEXT),
    _of_diffusers("UNet2DConditionModel of XL, epsilon", "xl", 0, TEXT),
    _of_diffusers("DiTTransformer2DModel, epsilon", "dit", 3, NONE),
    _of_diffusers("PixArtTransformer2DModel, epsilon", "pixart", 0, TEXT),
    _of_diffusers("SanaTransformer2DModel, flow", "flow", 0, TEXT),
    _of_diffusers("SD3Transformer2DModel, flow", "sd3", 0, TEXT),
]
