# SPDX-License-Identifier: Apache-2.0
"""Torch's own operators on dual numbers: exact or refused by name, never silently wrong.

The table of what each does is OPERATORS.md; `python tests/autodiff/operators.py` writes it.
"""

import pytest

PARTS = 6
"""The list in so many tests, every sixth operator each; a name per operator would need torch's
list while tests are collected, which takes 4 s."""


def failures(operators, most):
    from operators import run_operator

    results = [result for op in operators for result in run_operator(op, most)]
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
def test_a_choice_of_operators_is_exact_or_refused(part):
    pytest.importorskip("expecttest", reason="torch.testing's list of operators imports it")
    from operators import QUICK_SAMPLES, quick_choice

    assert failures(quick_choice()[part::PARTS], QUICK_SAMPLES) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.filterwarnings("ignore")
def test_every_operator_is_exact_or_refused(part):
    pytest.importorskip("expecttest", reason="torch.testing's list of operators imports it")
    from operator_cases import CAP, all_operators

    assert failures(all_operators()[part::PARTS], CAP) == []
