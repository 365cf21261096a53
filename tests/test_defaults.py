# SPDX-License-Identifier: Apache-2.0
"""Defaults are the paper's, or those of the paper that a part is from: nothing else says them."""

import inspect

import pytest
import torch
from torch import nn

from scm_lightning import ConsistencyModule, DiffusionModule
from scm_lightning.core import (
    GuidanceProposal,
    TangentBound,
    TangentWarmup,
    TimeGrid,
    TimeProposal,
    TrigFlow,
    VPProcess,
    clip_tangent,
    normalize_tangent,
)
from scm_lightning.modules import FlatCosine, HalfLife, InverseSqrt, PowerFunction
from scm_lightning.networks import EDM2UNet, UNet
from scm_lightning.objectives import (
    AdaptiveVSD,
    AlphaFlow,
    AlphaSchedule,
    Consistency,
    Discrete,
    MeanFlow,
)
from scm_lightning.sampling import DiffusionSampling, FewStepSampling, time_grid

EDM_GRID = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
DEFAULTS = [
    # arXiv 2410.11081: on CIFAR-10; guidance and VSD in Table 5
    (
        ConsistencyModule,
        {
            "objective": None,  # Consistency()
            "init": "teacher",
            "guidance": None,
            "lr_schedule": None,
            "ema": HalfLife(500_000, 0.05),
            "sampling": FewStepSampling(),
        },
    ),
    (
        Consistency,
        {
            "times": TimeProposal(-1.0, 1.4),
            "bound": TangentBound("l2", 0.1),
            "warmup": TangentWarmup(10_000, "scm"),
            "weighting": "learned",
            "prior": "folded",
        },
    ),
    (Discrete, {"num_intervals": 1024, "times": TimeProposal(-1.0, 1.4)}),
    (
        FewStepSampling,
        {"num_steps": None, "intermediate_times": (1.1,), "guidance": 1.0},
    ),
    (DiffusionSampling, {"num_steps": 18, "solver": "heun", "churn": None, "guidance": None}),
    (
        DiffusionModule,
        {
            "times": TimeProposal(-1.2, 1.2),
            "weighting": "none",
            "condition_dropout": 0.0,
            "lr_schedule": None,
            "ema": HalfLife(500_000, 0.05),
            "sampling": DiffusionSampling(),
        },
    ),
    (
        AdaptiveVSD,
        {
            "weight": 1.0,
            "times": TimeProposal(0.4, 2.0),
            "fake_times": TimeProposal(-0.8, 1.6),
        },
    ),
    (GuidanceProposal, {"low": 1.0, "high": 2.0}),
    (TimeProposal, {"P_mean": -1.0, "P_std": 1.4}),
    (TrigFlow, {"sigma_data": 0.5}),
    (normalize_tangent, {"c": 0.1, "norm": "l2"}),
    (clip_tangent, {"limit": 1.0}),
    (PowerFunction, {"sigma_rel": 0.05}),
    (InverseSqrt, {"ramp_steps": 0}),
    # arXiv 2206.00364 (EDM), and its code
    (TimeGrid, EDM_GRID),
    (time_grid, EDM_GRID),
    (TrigFlow.t_max, {"sigma_max": 80.0}),
    (HalfLife, {"images": 500_000, "ramp_up": 0.05}),
    (
        UNet,
        {"model_channels": 128, "channel_mult": (2, 2, 2), "num_blocks": 4, "dropout": 0.13},
    ),
    # arXiv 2312.02696 (EDM2): Table 6
    (EDM2UNet, {"model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_blocks": 3}),
    # arXiv 2011.13456, Appendix C
    (VPProcess, {"beta_min": 0.1, "beta_max": 20.0}),
    # arXiv 2505.13447, Algorithm 1
    (
        MeanFlow,
        {"share_of_intervals": 0.25, "p": 1.0, "c": 1e-3},
    ),
    # arXiv 2510.20771, its largest model
    (AlphaFlow, {"share_of_intervals": 0.75, "c": 1e-3}),
    (AlphaSchedule, {"start": 600_000, "end": 1_000_000, "gamma": 25.0, "cut": 5e-3}),
    (
        FlatCosine,
        {"total_steps": None, "ramp_steps": 0, "flat_share": 0.4, "last_factor": 0.02},
    ),  # ours
]


@pytest.mark.parametrize(
    ("part", "expected"), DEFAULTS, ids=lambda each: getattr(each, "__qualname__", "")
)
def test_defaults_are_those_of_the_papers(part, expected):
    parameters = inspect.signature(part).parameters
    assert {name: parameters[name].default for name in expected} == expected


def test_optimizers_are_the_paper_s():
    """CIFAR-10: RAdam of 1e-4 and (0.9, 0.99) for the student, Adam of 1e-3 for the teacher."""
    group = [{"params": [nn.Parameter(torch.zeros(1))]}]
    for module, kind, rate, betas in (
        (ConsistencyModule, torch.optim.RAdam, 1e-4, (0.9, 0.99)),
        (DiffusionModule, torch.optim.Adam, 1e-3, (0.9, 0.999)),
    ):
        optimizer = inspect.signature(module).parameters["optimizer"].default(group)
        assert type(optimizer) is kind
        assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (rate, betas)
