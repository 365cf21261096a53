# SPDX-License-Identifier: Apache-2.0
"""The lengths of the shipped configurations: at their own number of steps, and at 100."""

from pathlib import Path

import pytest
import torch
import yaml

from scm_lightning.core import TangentWarmup, in_run
from scm_lightning.modules import FlatCosine
from scm_lightning.objectives import AlphaSchedule

CONFIGS = Path(__file__).parents[2] / "configs"
STEPS = {  # of the run, and until the rate is up
    "digits_teacher": (2500, 50),
    "digits_scd": (2600, 50),
    "digits_sct": (3000, 50),
    "digits_sct_scratch": (12000, 50),
    "digits_mean_flow": (8000, 50),
    "digits_alpha_flow": (8000, 50),
    "fashion16_teacher": (1500, 50),
    "fashion16_scd": (1200, 50),
    "fashion16_sct": (1200, 50),
    "fashion32_teacher": (10000, 200),
    "fashion32_scd": (8000, 200),
    "fashion32_sct": (8000, 200),
    "fashion_latent_teacher": (4000, 50),
    "fashion_latent_scd": (1600, 50),
}
"""As versions before 0.5.0 had them, which wrote steps."""
SHORT = [
    *STEPS,
    *("emoji16_sct", "emoji32_words_teacher", "emoji32_words_scd", "emoji32_words_sct"),
    *("digits_superres", "digits_inpaint", "moving_digits_teacher", "moving_digits_scd"),
]
"""Configurations whose lengths are the run's; the paper's count steps, as its tables do."""


def content(name):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return config["trainer"]["max_steps"], config["model"]["init_args"]


def factors(options, max_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    with in_run(max_steps):
        return FlatCosine(optimizer, **options).lr_lambdas[0]


@pytest.mark.parametrize("name", STEPS)
def test_shares_are_the_steps_they_were(name):
    """Rates and r are the same numbers in every step."""
    total, ramp = STEPS[name]
    max_steps, model = content(name)
    assert max_steps == total
    before = factors({"total_steps": total, "ramp_steps": ramp}, None)
    now = factors(model["lr_schedule"]["init_args"], max_steps)
    assert all(before(step) == now(step) for step in range(total + 1))
    if "warmup" in (options := model.get("objective", {}).get("init_args", {})):
        warmup = TangentWarmup(**options["warmup"])
        assert all(warmup.r(n, max_steps) == n / total for n in range(total + 1))
    if "schedule" in options:
        assert AlphaSchedule(**options["schedule"]).ends(max_steps) == (0, 4000)


@pytest.mark.parametrize("name", SHORT)
def test_another_number_of_steps_alone_is_a_whole_run(name):
    _, model = content(name)
    factor = factors(model["lr_schedule"]["init_args"], 100)
    assert factor(40) == 1.0
    assert factor(100) == pytest.approx(0.02)
    options = model.get("objective", {}).get("init_args", {})
    assert TangentWarmup(**options.get("warmup", {"steps": 0})).r(100, 100) == 1.0
    assert AlphaSchedule(**options.get("schedule", {"start": 0, "end": 1})).alpha(100, 100) == 0.0


def test_no_short_configuration_counts_steps():
    for file in CONFIGS.glob("*.yaml"):
        text = file.read_text()
        assert (file.stem in SHORT) == ("total_steps: null" in text), file
