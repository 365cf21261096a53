# SPDX-License-Identifier: Apache-2.0
"""The command line behind `scm`: LightningCLI with this project's callbacks, links and errors."""

import inspect
from contextlib import nullcontext, suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

# isort: off
import scm_lightning.torchvision_guard  # before lightning

# isort: on
import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger

import scm_lightning.data
import scm_lightning.modules
import scm_lightning.networks
import scm_lightning.objectives
import scm_lightning.preparation  # noqa: F401  class names resolve once they are imported
from scm_lightning.callbacks import (
    BadNumbers,
    Checkpoints,
    Diagnostics,
    GradientSync,
    LostProcess,
    Progress,
    RunLog,
    SampleGrids,
    SampleMetrics,
    StopSignals,
    Summary,
)
from scm_lightning.callbacks.sweep import words_of_best
from scm_lightning.cli.bench import BenchTrainer, prepare
from scm_lightning.cli.built import option_of
from scm_lightning.cli.failures import reason, said_first
from scm_lightning.cli.launch_checks import check_launch
from scm_lightning.cli.lightning_news import leave_out_no_news
from scm_lightning.cli.network_size import check_network_size
from scm_lightning.cli.next_steps import (
    after_training,
    checkpoint_of,
    export_of,
    fit_instead,
    folder_of,
    pictures_of,
    say_next,
    scores_of,
    student_of,
)
from scm_lightning.cli.option_checks import check_options, check_writable
from scm_lightning.cli.parsers import CommandParser
from scm_lightning.cli.resume import LAST, AlreadyTrained, starting_point
from scm_lightning.cli.run_config import FILE, LAST_CHECKPOINT, spelled_out, typed
from scm_lightning.cli.saved_config import SaveTrainingConfig
from scm_lightning.cli.screens import HEADINGS, OF_MODELS
from scm_lightning.cli.templates import value_of
from scm_lightning.saying import say
from scm_lightning.storage import SavedRun

CALLBACKS = {
    "metrics": SampleMetrics,
    "grids": SampleGrids,
    "diagnostics": Diagnostics,
    "gradient_sync": GradientSync,
    "bad_numbers": BadNumbers,
    "stop_signals": StopSignals,
    "lost_process": LostProcess,
    "checkpoints": Checkpoints,
}
"""Those of every run, by the names of their options."""
SWEEP = "model.init_args.sampling.sweep"
STAGES_OF_A_RUN = ("validate", "test", "predict")
"""Stages that take a trained model: not random weights."""
REFUSALS = (TypeError, ArithmeticError, LookupError, AttributeError, ImportError, RuntimeError)
"""Further errors of building an object of the configuration: its options are the user's."""


def one_sigma_data(owned: float, data: Namespace | None) -> float:
    """Hand the path's `sigma_data` to the data, unless they are given another.

    Args:
        owned: that of the path. Data units.
        data: options of the data.

    Raises:
        ValueError: if the data are given another.
    """
    given = data.get("init_args.sigma_data") if data else None
    own = inspect.signature(resolve_name(data.class_path)).parameters if data else {}
    if given not in (None, owned) and given != own["sigma_data"].default:
        raise ValueError(
            f"data.init_args.sigma_data must be left out, since the data take that of "
            f"model.init_args.path, {owned}, got {given}; change that of the path"
        )
    return owned


class OneLineParser(CommandParser, LightningArgumentParser):
    """Parser of the commands that have a model."""


class SCMCommandLine(LightningCLI):
    """`fit`, `validate`, `test` and `predict` of a model and data named in a configuration."""

    _start: str | None = None
    """Checkpoint that the weights come from."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those of the CLI here: Lightning's, and `bench`."""
        return {**LightningCLI.subcommands(), "bench": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the callbacks of every run, and hand `sigma_data` from its owner to the data."""
        for name, kind in CALLBACKS.items():
            parser.add_lightning_class_args(kind, name)
        for name, group in (parser.groups or {}).items():
            group.title = HEADINGS.get(name, group.title)
        owner, target = "model.init_args.path.sigma_data", "data.init_args.sigma_data"
        parser.link_arguments((owner, "data"), target, compute_fn=one_sigma_data)
        parser.add_argument(
            "--fresh",
            type=bool,
            default=False,
            help="scm fit starts anew and moves the checkpoints of this folder aside; without it "
            "the run continues from its newest checkpoint.",
        )
        if parser.description == OF_MODELS["predict"]:
            parser.add_argument(
                "--prompts",
                type=str | None,
                help="text file with a prompt in each line, to draw by; short for "
                "--data.init_args.prompts.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and refuse what the types of the options do not say."""
        super().parse_arguments(parser, args)
        subcommand = self.config.subcommand
        config = self.config[subcommand]
        if (prompts := config.get("prompts")) is not None:
            config["data.init_args.prompts"] = prompts
        check_options(config)
        check_launch(config)
        check_network_size(config)
        if subcommand != "validate" and not config.get("dry_run"):
            check_writable(config.trainer.default_root_dir or ".")

    def before_instantiate_classes(self) -> None:
        """Choose the checkpoint to start from, in the run's folder: `trainer.default_root_dir`."""
        config = self.config[self.subcommand]
        kept = typed(config)
        self.save_config_kwargs = {"kept": kept}
        if self._is_dry_run():
            prepare(config)
            return
        spelled_out(config)
        root = Path(config.trainer.default_root_dir or ".")
        if self.subcommand == "fit":
            current = self._parser(self.subcommand).dump(kept, skip_none=False)
            try:
                self._start = starting_point(config, current, root / FILE)
            except AlreadyTrained as done:
                say(str(done))
                after_training(config.as_dict())
                raise
        elif self.subcommand in STAGES_OF_A_RUN:
            is_given = config.ckpt_path not in (None, LAST)
            self._start = config.ckpt_path if is_given else str(root / LAST_CHECKPOINT)
            # A missing or foreign file is refused before the work.
            step = SavedRun.read(self._start).content["global_step"]
            say(f"weights of {self._start}, step {step}")
        if self._start is not None and "init" in config.model.init_args:
            config.model.init_args.init = None  # its weights would be replaced at once

    def instantiate_classes(self) -> None:
        """Build the objects; for a dry run without memory for weights."""
        with torch.device("meta") if self._is_dry_run() else nullcontext():
            try:
                super().instantiate_classes()
            except (ValueError, *REFUSALS) as raised:
                error = said_first(raised)
                key = option_of(error, self.config[self.subcommand])
                if isinstance(error, ValueError | OSError):
                    said = reason(error)
                    raise ValueError(f"{key}: {said}" if key else said) from error
                raise ValueError(  # of torch, Lightning or a class of the user's
                    f"{key or 'the configuration'} cannot be built: {type(error).__name__}, "
                    f"{error}; SCM_TRACEBACK=1 in the environment shows where"
                ) from error
        if self.subcommand in ("fit", *STAGES_OF_A_RUN):
            self.config_init[self.subcommand].ckpt_path = self._start

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer, with a progress bar and a log in the run's folder."""
        given = self._get(self.config_init, "trainer")
        if not self._is_dry_run():
            kwargs |= self._filled_in(given)
        return super().instantiate_trainer(**kwargs)

    def _filled_in(self, given: Namespace) -> dict[str, Any]:
        """Further arguments of the trainer: derived from its options, not kept with them."""
        root = given.default_root_dir or "."
        callbacks = given.callbacks or []
        callbacks = [*callbacks] if isinstance(callbacks, list) else [callbacks]
        shown = any(isinstance(each, Progress) for each in callbacks)
        if given.enable_progress_bar is not False and not shown:
            callbacks.append(Progress())
        if given.enable_model_summary is not False:
            callbacks.append(Summary())
        filled: dict[str, Any] = {"callbacks": callbacks}
        if isinstance(given.val_check_interval, int):
            filled["check_val_every_n_epoch"] = None  # count steps, not those of a pass
        if self.subcommand == "fit":
            filled["logger"] = RunLog(root) if given.logger is None else given.logger
        elif given.logger is None or (
            isinstance(given.logger, CSVLogger) and Path(given.logger.log_dir) == Path(root)
        ):
            filled["logger"] = False  # a new logger would remove the log of the training
        return filled

    def after_fit(self) -> None:
        """Say what there is now, and what to type next."""
        if not self.config.fit.trainer.fast_dev_run:
            after_training(self.config.fit.as_dict(), self.trainer.loggers)

    def after_validate(self) -> None:
        """Say what to type next."""
        config, again = self._again()
        say_next(scores_of(config, *again) or pictures_of(config, *again))

    def after_test(self) -> None:
        """Say what to type next."""
        config, again = self._again()
        best = words_of_best(folder_of(config)) if value_of(config, SWEEP) else []
        say_next(pictures_of(config, *again, *best))

    def after_predict(self) -> None:
        """Say what to type next."""
        config, again = self._again()
        weights = again[1] if again else checkpoint_of(config)
        say_next(student_of(config, weights) or export_of(config, weights))

    def _again(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Options of this command, and those that name its weights if it does not take the last."""
        config = self.config[self.subcommand].as_dict()
        is_given = config["ckpt_path"] not in (None, LAST)
        return config, ("--ckpt_path", config["ckpt_path"]) if is_given else ()

    def _is_dry_run(self) -> bool:
        return self.subcommand == "bench" and bool(self.config[self.subcommand].dry_run)

    def _parse_ckpt_path(self) -> None:
        """Keep hyper-parameters saved in a checkpoint from overriding what the user typed."""


def run(args: ArgsType) -> None:
    """Parse the arguments and run the subcommand.

    Args:
        args: arguments, or None for the process's own.

    Raises:
        ValueError: if what the user passed does not fit.
    """
    leave_out_no_news()
    with suppress(AlreadyTrained):
        SCMCommandLine(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=BenchTrainer,
            seed_everything_default=0,
            save_config_callback=SaveTrainingConfig,
            parser_class=OneLineParser,
            parser_kwargs={
                "prog": "scm",
                **{name: {"description": does} for name, does in OF_MODELS.items()},
            },
            auto_configure_optimizers=False,  # the models have their own
            args=args,
        )
        if isinstance(args, list) and args[0] == "bench":
            own = inspect.signature(BenchTrainer.bench).parameters.keys() - {"model"}
            say_next(fit_instead(args[1:], own))
