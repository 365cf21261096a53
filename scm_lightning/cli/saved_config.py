# SPDX-License-Identifier: Apache-2.0
"""The callback that writes a run's `config.yaml`; see `run_config.py` for what is in it."""

from pathlib import Path

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: on
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from scm_lightning.cli.run_config import FILE, HEADER
from scm_lightning.storage.side_files import say_unwritten, write_result


class SaveTrainingConfig(SaveConfigCallback):
    """Writes the run's `config.yaml` when it is trained, and leaves it alone in later stages.

    Args:
        parser: what the configuration was parsed with.
        config: the configuration that the objects were built from.
        kept: the one that is written.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, kept: Namespace) -> None:
        super().__init__(parser, kept)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Wait: a configuration that does not fit the run's checkpoint must not replace its own."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, now that the checkpoint has been read."""
        if trainer.is_global_zero:
            content = HEADER + self.parser.dump(self.config, skip_none=False)
            file = Path(trainer.default_root_dir) / FILE
            try:
                write_result(file, content)
            except OSError as error:
                say_unwritten(file, error, "with the options that are on the screen")
