# SPDX-License-Identifier: Apache-2.0
"""Floor 7: the cost of a training step, and the needs of a run of them.

compared    the steps that are compared
measuring   their time, memory and FLOPs, on real data
counting    FLOPs and memory of whatever runs, with numbers in its tensors or without
dry_run     a configured step, counted without weights, data or a GPU
plan        the run that is made of such steps, over GPUs
tables      both as they are printed and written
"""

# isort: off
import scm_lightning.torchvision_guard  # noqa: F401  before lightning

# isort: on
from scm_lightning.bench.compared import attention_steps, training_steps
from scm_lightning.bench.dry_run import dry_run
from scm_lightning.bench.measuring import Cost, measure
from scm_lightning.bench.plan import GPU, Plan
from scm_lightning.bench.tables import report_costs, report_plan

__all__ = [
    "GPU",
    "Cost",
    "Plan",
    "attention_steps",
    "dry_run",
    "measure",
    "report_costs",
    "report_plan",
    "training_steps",
]
