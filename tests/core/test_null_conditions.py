# SPDX-License-Identifier: Apache-2.0
"""Conditions by name: what stands for none of them, together or apart, and in both branches."""

import pytest
import torch

from scm_lightning.core import NULL_LABEL, Bound, Conditions, Guided

LABELS = torch.tensor([2, 0, 1, 1, 2])
MASK = torch.tensor([[True] * 4, [True, False, False, False], [True, True, False, False]]).repeat(
    2, 1
)[:5]


@pytest.fixture
def given(randn):
    """Labels, a text with its mask, and an image, of which the text has a stand-in of its own."""
    named = {"text": randn(5, 4, 3), "text_mask": MASK, "image": randn(5, 2, 6, 6)}
    nulls = {"text": randn(4, 3), "text_mask": torch.tensor([True, True, False, False])}
    return Conditions(LABELS, named, nulls)


def test_all_are_replaced_by_what_stands_for_none(given):
    """A stored embedding with its mask, zeros where there is none, and no class."""
    none = given.without(given.names())
    assert none.labels.tolist() == [NULL_LABEL] * 5
    for place in range(5):
        assert torch.equal(none.named["text"][place], given.nulls["text"])
        assert torch.equal(none.named["text_mask"][place], given.nulls["text_mask"])
    assert not none.named["image"].any()
    empty = given._replace(nulls={}).without(["text"])
    assert empty.named["text_mask"].dtype == torch.bool
    assert not empty.named["text_mask"].any()


def test_a_mask_goes_with_what_it_masks_and_others_stay(given):
    without_text = given.without(["text"])
    assert torch.equal(without_text.named["text_mask"][1], given.nulls["text_mask"])
    assert without_text.named["image"] is given.named["image"]
    assert without_text.labels is LABELS
    assert given.without(["labels"]).named["text_mask"] is MASK
    assert given.names() == ["labels", "text", "image"]


def test_a_mask_of_its_own_is_a_condition(randn):
    """`hole_mask` without a `hole` beside it."""
    given = Conditions(named={"hole_mask": torch.ones(5, 6), "image": randn(5, 6)})
    assert given.without(["image"]).named["hole_mask"].all()
    assert not given.without(["hole_mask"]).named["hole_mask"].any()


NULLS = {
    "of nothing": (
        {"pose": torch.zeros(3)},
        "data have, text, text_mask, image, got pose",
    ),
    "of a batch": ({"text": torch.zeros(5, 4, 3)}, r"shape, \(4, 3\), got \(5, 4, 3\); correct"),
    "of another width": ({"text": torch.zeros(4, 2)}, r"the null of text .* got \(4, 2\)"),
    "a number": ({"image": -3.0}, r"shape, \(2, 6, 6\), got -3\.0"),
}


@pytest.mark.parametrize("name", NULLS)
def test_a_stand_in_that_would_stand_for_nothing_is_refused(name, given):
    nulls, message = NULLS[name]
    with pytest.raises(ValueError, match=message):
        Guided(lambda *_, **__: None, given._replace(nulls=nulls))


def test_a_sample_loses_all_of_its_conditions_or_none(randn):
    """As often as asked, within four standard deviations."""
    torch.manual_seed(0)
    num = 20_000
    given = Conditions(torch.arange(num) % 7, {"pose": 1 + randn(num, 2).abs()})
    dropped = given.dropped(0.3)
    gone = dropped.labels == NULL_LABEL
    assert torch.equal(gone, (dropped.named["pose"] == 0).all(1))
    assert torch.equal(dropped.named["pose"][~gone], given.named["pose"][~gone])
    assert abs(float(gone.double().mean()) - 0.3) < 4 * (0.3 * 0.7 / num) ** 0.5
    assert Conditions().dropped(0.5) == Conditions()


def test_a_run_that_hides_nothing_draws_nothing(given):
    """So that runs of 0.4.0 go on to the same bits."""
    state = torch.random.get_rng_state()
    assert given.dropped(0.0) is given
    assert given.dropped({"text": 0.0, "labels": 0.0}) is given
    assert torch.equal(torch.random.get_rng_state(), state)


def test_conditions_are_hidden_apart_if_asked(randn):
    """Independently: both are hidden as often as the product says."""
    torch.manual_seed(0)
    num = 20_000
    given = Conditions(torch.arange(num) % 7, {"pose": 1 + randn(num, 2).abs()})
    dropped = given.dropped({"labels": 0.3, "pose": 0.5})
    no_label, no_pose = dropped.labels == NULL_LABEL, (dropped.named["pose"] == 0).all(1)
    for gone, p in ((no_label, 0.3), (no_pose, 0.5), (no_label & no_pose, 0.15)):
        assert abs(float(gone.double().mean()) - p) < 4 * (p * (1 - p) / num) ** 0.5
    with pytest.raises(ValueError, match="that the data have, labels, pose, got text; correct"):
        given.dropped({"text": 0.1})


def test_integers_and_truths_keep_their_type(randn):
    """A stand-in is of the type and on the device of what it stands for."""
    named = {"style": torch.tensor([4, 5, 6]), "is_night": torch.tensor([True, True, False])}
    none = Conditions(None, named, {"style": torch.tensor(9.0)}).without(["style", "is_night"])
    assert none.named["style"].tolist() == [9, 9, 9]
    assert none.named["style"].dtype == torch.int64
    assert none.named["is_night"].tolist() == [False] * 3


def test_bound_conditions_reach_the_network_by_name(given, randn):
    calls = []

    def network(u, t, labels, guidance, **named):
        calls.append(named)
        return u

    bound = Bound(network, LABELS, named=given.named)
    u, t = randn(5, 2), randn(5)
    bound(u, t)
    bound.first(2)(u[:2], t[:2])
    bound.in_type(torch.float32)(u, t)
    assert [call["text"].shape[0] for call in calls] == [5, 2, 5]
    assert [call["text"].dtype for call in calls] == [torch.float64] * 2 + [torch.float32]
    assert [call["text_mask"].dtype for call in calls] == [torch.bool] * 3
    with pytest.raises(ValueError, match=r"pose must be a tensor of one value.*got 0\.5"):
        Bound(network, named={"pose": 0.5})


def poses(calls):
    """F = (label + 2) (1 + pose) (1 + image) u; without any of them 1 u."""

    def network(u, t, labels, **named):
        calls.append(len(u))
        factor = (labels + 2) * (1 + named["pose"]) * (1 + named["image"])
        return factor[:, None] * u

    return network


def test_one_scale_guides_towards_all_conditions_in_one_call(randn):
    calls, u, t, s = [], randn(5, 2), randn(5), randn(5)
    given = Conditions(LABELS, {"pose": randn(5), "image": randn(5)})
    full = (LABELS + 2) * (1 + given.named["pose"]) * (1 + given.named["image"])
    found = Guided(poses(calls), given, s)(u, t)
    torch.testing.assert_close(found, (1 + s * (full - 1))[:, None] * u)
    assert calls == [10]


@pytest.mark.parametrize("order", [["image", "pose"], ["pose", "image"]])
def test_every_condition_has_a_scale_of_its_own(randn, order):
    """They are added in the order of the scales, to the class, which has none and stays."""
    calls, u, t = [], randn(5, 2), randn(5)
    given = Conditions(LABELS, {"pose": randn(5), "image": randn(5)})
    scales = {name: randn(5) for name in order}
    factors = [LABELS + 2.0]
    for name in order:
        factors.append(factors[-1] * (1 + given.named[name]))
    first, second, third = factors
    one, two = (scales[name] for name in order)
    expected = first + one * (second - first) + two * (third - second)
    found = Guided(poses(calls), given, scales)(u, t)
    torch.testing.assert_close(found, expected[:, None] * u)
    assert calls == [15]


def test_scales_of_one_are_the_plain_model(randn):
    given = Conditions(LABELS, {"pose": randn(5), "image": randn(5)})
    u, t, ones = randn(5, 2), randn(5), torch.ones(5).double()
    plain = Guided(poses([]), given)(u, t)
    apart = Guided(poses([]), given, {"labels": ones, "pose": ones, "image": ones})(u, t)
    torch.testing.assert_close(apart, plain)
    torch.testing.assert_close(Guided(poses([]), given, ones)(u, t), plain)


def test_a_scale_of_what_the_data_do_not_have_is_refused(randn):
    given = Conditions(LABELS, {"pose": randn(5)})
    with pytest.raises(ValueError, match=r"conditions that the data have, labels, pose, got text"):
        Guided(poses([]), given, {"text": randn(5)})
