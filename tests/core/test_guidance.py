# SPDX-License-Identifier: Apache-2.0
"""Guidance: the formula, one call for both branches, dropped labels."""

import pytest
import torch

from scm_lightning.core import (
    NULL_LABEL,
    Conditions,
    GuidanceProposal,
    Guided,
    expand_time,
)


def linear_network(calls):
    """F = (label + 2) u cos t; 1 u cos t without a class."""

    def network(u, t, labels):
        calls.append(len(u))
        return expand_time(t.cos() * (labels + 2), u) * u

    return network


def test_guidance_by_hand_in_one_call(randn):
    """F_none + s (F_class - F_none) = (1 + s (label + 1)) u cos t."""
    u, t = randn(5, 2, 3), torch.linspace(0.1, 1.5, 5).double()
    labels, s = torch.tensor([0, 1, 2, 0, 3]), torch.tensor([1.0, 1.3, 2.0, 0.0, 1.7])
    calls = []
    F = Guided(linear_network(calls), Conditions(labels), s)(u, t)
    expected = expand_time((1 + s.double() * (labels + 1)) * t.cos(), u) * u
    torch.testing.assert_close(F, expected, rtol=1e-6, atol=1e-6)
    assert calls == [10]


def test_guidance_of_a_half_precision_network_is_taken_in_float32(randn):
    """A difference of nearly equal outputs, times a scale: rounded once, by the network."""
    u, t, s = randn(5, 2).float(), torch.linspace(0.1, 1.5, 5), torch.linspace(1, 2, 5)
    labels, outputs = torch.arange(5), []

    def network(u, t, labels):
        outputs.append((u + 1e-2 * labels[:, None]).bfloat16())
        return outputs[-1]

    found = Guided(network, Conditions(labels), s)(u, t)
    F_class, F_none = outputs[0].float().chunk(2)
    assert found.dtype == Guided(network, Conditions(labels), None)(u, t).dtype == torch.float32
    assert torch.equal(found, F_none + s[:, None] * (F_class - F_none))


def test_scale_one_is_the_plain_model(randn):
    u, t = randn(5, 2), torch.linspace(0.1, 1.5, 5).double()
    labels = torch.arange(5)
    network = linear_network([])
    F = Guided(network, Conditions(labels), torch.ones(5).double())(u, t)
    torch.testing.assert_close(F, network(u, t, labels))


def test_guidance_without_labels_is_refused(randn):
    with pytest.raises(ValueError, match="the data have neither labels nor conditions"):
        Guided(linear_network([]), Conditions(), randn(5))


def test_one_scale_for_all_is_refused(randn):
    with pytest.raises(ValueError, match=r"guidance must be a tensor of one value .*, got 1\.5;"):
        Guided(linear_network([]), Conditions(torch.zeros(5, dtype=torch.int64)), 1.5)


def test_labels_are_dropped_as_often_as_asked():
    """Within four standard deviations; the others stay."""
    torch.manual_seed(0)
    labels = torch.arange(20_000) % 7
    dropped = Conditions(labels).dropped(0.1).labels
    gone = dropped == NULL_LABEL
    assert abs(float(gone.double().mean()) - 0.1) < 4 * (0.1 * 0.9 / 20_000) ** 0.5
    assert torch.equal(dropped[~gone], labels[~gone])
    assert torch.equal(Conditions(labels).dropped(0.0).labels, labels)


def test_scales_are_uniform_between_their_ends():
    torch.manual_seed(0)
    scales = GuidanceProposal(1.0, 2.0).sample(20_000)
    assert 1.0 <= float(scales.min()) < 1.001 < 1.999 < float(scales.max()) <= 2.0
    assert float(scales.mean()) == pytest.approx(1.5, abs=4 * (1 / 12 / 20_000) ** 0.5)
    with pytest.raises(ValueError, match=r"between low <= high, got 2\.0 and 1\.0"):
        GuidanceProposal(2.0, 1.0)
