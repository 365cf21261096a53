# SPDX-License-Identifier: Apache-2.0
"""Torch's own operators on dual numbers: exact or refused by name, never silently wrong.

The table of what each does is OPERATORS.md; `python tests/autodiff/operators.py` writes it.
"""

from types import SimpleNamespace

import pytest
import tangent_calls
import torch
from tangent_check import Judge

PARTS = 6
"""The list in so many tests, every sixth operator each; a name per operator would need torch's
list while tests are collected, which takes 4 s."""


@pytest.fixture(autouse=True)
def only_the_cpu_is_seeded(monkeypatch):
    """Torch's sample inputs seed all devices, see tangent_calls.py."""
    monkeypatch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)


def failures(operators, *options):
    from operators import run_operator

    results = [result for op in operators for result in run_operator(op, *options)]
    assert sum(result.outcomes["exact"] for result in results) > 0
    return [
        f"{result.op} {result.dtype} {result.way}: {detail} ({count} times)"
        for result in results
        if result.failed
        for detail, count in result.details.items()
        if detail.startswith(("wrong", "raw"))
    ]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.filterwarnings("ignore")
def test_every_operator_is_exact_or_refused_at_one_sample(part):
    pytest.importorskip("expecttest", reason="torch.testing's list of operators imports it")
    from operator_cases import all_operators

    assert failures(all_operators()[part::PARTS], 1, [torch.float64]) == []


@pytest.mark.filterwarnings("ignore")
def test_an_operator_of_each_rule_is_exact_or_refused():
    pytest.importorskip("expecttest", reason="torch.testing's list of operators imports it")
    from operators import CHOSEN_SAMPLES, one_of_each_rule

    assert failures(one_of_each_rule(), CHOSEN_SAMPLES) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.filterwarnings("ignore")
def test_every_operator_is_exact_or_refused(part):
    pytest.importorskip("expecttest", reason="torch.testing's list of operators imports it")
    from operator_cases import CAP, all_operators

    assert failures(all_operators()[part::PARTS], CAP) == []


FAULTS = {
    "tangent: output 0": lambda value, tangent: (value, tangent * (1 + 1e-8)),
    "tangent lost: output 0": lambda value, tangent: (value, None),
    "gradient lost: number 0": lambda value, tangent: (value.detach(), tangent),
    "gradient: number 0": lambda value, tangent: (
        value + 1e-8 * (value - value.detach()),
        tangent,
    ),
    "value: number 0": lambda value, tangent: (value + 1e-8, tangent),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault, monkeypatch):
    """A harness that finds nothing proves nothing."""
    engine = tangent_calls.engine()

    class Faulty(engine.DualNumbers):
        def part(self, x):
            return FAULTS[fault](*super().part(x))

    leaf = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    judge = Judge(lambda: (torch.sin, ()), [leaf], [torch.ones_like(leaf)])
    assert judge([True]).outcome == "exact"
    faulty = SimpleNamespace(DualNumbers=Faulty, TangentError=engine.TangentError)
    monkeypatch.setattr(tangent_calls, "engine", lambda: faulty)
    verdict = judge([True])
    assert verdict.outcome == "wrong"
    assert verdict.detail.startswith(fault)
