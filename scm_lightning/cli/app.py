# SPDX-License-Identifier: Apache-2.0
"""The command line behind `scm`: LightningCLI with this project's callbacks, links and errors."""

from pathlib import Path
from typing import NoReturn

import scm_lightning.torchvision_guard  # noqa: F401  before lightning
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import scm_lightning.data
import scm_lightning.modules
import scm_lightning.networks  # noqa: F401  class names resolve once they are imported
from scm_lightning.callbacks import Diagnostics, Progress, SampleGrids, SampleMetrics

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"
USER_ERRORS = (ValueError, OSError, MisconfigurationException)
"""What bad input raises: shown as one line. Anything else is a fault of ours and keeps its trace."""


class OneLineParser(LightningArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        """Refuse the arguments. The line is printed, and the exit code set, by `main`."""
        raise ValueError(message)


class SCMCommandLine(LightningCLI):
    """`fit`, `validate`, `test` and `predict` of a model and data named in a configuration."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks of every run, and hand `sigma_data` from its owner to the data."""
        parser.add_lightning_class_args(SampleMetrics, "metrics")
        parser.add_lightning_class_args(SampleGrids, "grids")
        parser.add_lightning_class_args(Diagnostics, "diagnostics")
        parser.add_lightning_class_args(Progress, "progress")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.filename": "{step:07d}",
                "checkpoint.auto_insert_metric_name": False,
                "checkpoint.save_last": True,
                "checkpoint.enable_version_counter": False,
                "checkpoint.every_n_train_steps": 500,
            }
        )
        parser.link_arguments("model.init_args.path.sigma_data", "data.init_args.sigma_data")

    def before_instantiate_classes(self) -> None:
        """Fill in where a run's files are: all of them under `trainer.default_root_dir`."""
        config = self.config[self.subcommand]
        root = Path(config.trainer.default_root_dir or ".")
        config.checkpoint.dirpath = config.checkpoint.dirpath or str(root / "checkpoints")
        if config.trainer.logger is None:
            config.trainer.logger = Namespace(
                class_path="lightning.pytorch.loggers.CSVLogger",
                init_args=Namespace(save_dir=str(root), name="", version=""),
            )
        if self.subcommand != "fit" and config.ckpt_path is None:
            config.ckpt_path = str(root / LAST_CHECKPOINT)
        if config.ckpt_path is not None and not Path(config.ckpt_path).is_file():
            raise ValueError(
                f"there is no checkpoint {config.ckpt_path}; train first with `scm fit` and the "
                "same configuration, or pass another --ckpt_path"
            )

    def _parse_ckpt_path(self) -> None:
        """Do not let hyper-parameters saved in a checkpoint override what the user typed."""


def run(args: ArgsType) -> None:
    """Parse the arguments and run the subcommand.

    Raises:
        ValueError: if what the user passed does not fit.
    """
    SCMCommandLine(
        model_class=LightningModule,
        datamodule_class=LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_class=OneLineParser,
        args=args,
    )
