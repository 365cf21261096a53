# SPDX-License-Identifier: Apache-2.0
"""A network whose conditions are bound."""

import pytest
import torch

from scm_lightning.core import Bound

U = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2)
T = torch.linspace(0.2, 1.4, 5, dtype=torch.float64)
LABELS = torch.tensor([2, -1, 0, 1, 1])


def network(u, t, labels, guidance, t_end):
    return (u + (labels * guidance)[:, None]) * (t - t_end)[:, None]


def plain(u, t, labels=None, guidance=None):
    """A network without a second time, which is not handed one."""
    assert labels is None
    assert guidance is None
    return u * t[:, None]


def test_conditions_are_those_that_are_bound():
    """A second time too, unless the call brings another; foreign networks see what they take."""
    torch.testing.assert_close(Bound(plain)(U, T), U * T[:, None], rtol=0, atol=0)
    f, ends = Bound(network, LABELS, 1 + T, T / 2), T / 3
    moved = U + (LABELS * (1 + T))[:, None]
    torch.testing.assert_close(f(U, T), moved * (T - T / 2)[:, None], rtol=0, atol=0)
    torch.testing.assert_close(f(U, T, ends), moved * (T - ends)[:, None], rtol=0, atol=0)


def test_the_first_samples_are_those_of_the_whole_batch():
    f = Bound(network, LABELS, 1 + T, T / 2)
    torch.testing.assert_close(f.first(2)(U[:2], T[:2]), f(U, T)[:2], rtol=0, atol=0)


def test_another_type_leaves_classes_as_they_are():
    f = Bound(network, LABELS, 1 + T, T / 2).in_type(torch.float32)
    assert torch.equal(f.labels, LABELS)
    assert {f.guidance.dtype, f.t_end.dtype} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "given"), [("labels", 3), ("labels", [1] * 5), ("guidance", 1.5), ("t_end", 0.0)]
)
def test_conditions_that_are_no_tensors_are_refused(name, given):
    """Networks would take one number in different ways, and most in none that says so."""
    with pytest.raises(ValueError, match=f"{name} must be a tensor of one value per sample"):
        Bound(network, **{name: given})
