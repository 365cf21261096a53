# SPDX-License-Identifier: Apache-2.0
"""Small trainings of the digits' teacher by the command line."""

from pathlib import Path

from scm_lightning.cli import main

CONFIG = Path(__file__).parents[2] / "configs" / "digits_teacher.yaml"
NETWORK = "model.init_args.network.init_args"


def fit(folder, steps, *further, shards=None, **options):
    """Train the digits' teacher, made small, up to a step."""
    fixed = {
        "trainer.default_root_dir": folder,
        "data.init_args.root": shards or folder.parent / "shards",
        "data.init_args.batch_size": 37,
        "data.init_args.num_val_samples": 20,
        f"{NETWORK}.model_channels": 16,
        f"{NETWORK}.num_blocks": 1,
        f"{NETWORK}.dropout": 0.1,
        "model.init_args.lr_schedule.init_args.total_steps": 2500,  # also of a run that goes on
        "model.init_args.lr_schedule.init_args.ramp_steps": 4,
        "checkpoints.every_n_train_steps": 5,
        "trainer.val_check_interval": 4,
        "trainer.log_every_n_steps": 1,
        "trainer.max_steps": steps,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
    }
    given = {**fixed, **{key.replace("__", "."): value for key, value in options.items()}}
    main(["fit", f"--config={CONFIG}", *(f"--{k}={v}" for k, v in given.items()), *further])
