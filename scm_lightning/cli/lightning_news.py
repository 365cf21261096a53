# SPDX-License-Identifier: Apache-2.0
"""Messages of Lightning and torch that say nothing about a run."""

import logging
import warnings

EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # the shards are in memory
    ".*is smaller than the logging interval.*",  # it counts steps over the ends of passes
    ".*`IterableDataset` has `__len__` defined.*",  # one order stream per process, no workers
    ".*in eval mode at the start of training.*",  # the average and the teacher
    ".*LeafSpec.*is deprecated.*",  # inside Lightning
    ".*is not supported by the model summary.*",  # its size in bytes, which is not shown
    ".*torch.jit.script.*",  # inside torch.func.jvp
    ".*args parameter is intended to run from within Python.*",  # tests do
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*returned a view tensor.*",  # from a sharded network; nothing writes into its output
    r"\s*Unable to serialize instance <function.*",  # a default that YAML cannot say
    ".*use `self.log\\(.*sync_dist=True.*",  # distances are the same in all processes
)
NO_NEWS = (
    "💡 Tip",
    "TPU available",
    "GPU available",
    "Trainer already configured with model summary",
    "`Trainer.fit` stopped: `max_steps",
    "Restoring states from the checkpoint",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
)
"""Beginnings of Lightning's messages that say nothing, or what is said in other words."""


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether a message of Lightning's says something about this run."""
    return not record.getMessage().startswith(NO_NEWS)


def leave_out_no_news() -> None:
    """Leave them out of what this process prints."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_news)
