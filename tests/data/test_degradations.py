# SPDX-License-Identifier: Apache-2.0
"""Low resolutions and holes: by hand, their draws, and the distance from what was given."""

import pytest
import torch

from scm_lightning.data import Hole, LowResolution
from scm_lightning.preparation import Digits


def generators(num, seed=0):
    return [torch.Generator().manual_seed(seed + number) for number in range(num)]


def test_low_resolution_by_hand(randn):
    """Every pixel is the mean of its block, in frames of videos too."""
    data = randn(3, 2, 4, 6)
    image = LowResolution(2)(data, generators(3))["image"]
    assert image.shape == data.shape == (3, *LowResolution(2).shapes((2, 4, 6))["image"])
    for row, column in ((0, 0), (3, 5), (1, 2)):
        top, left = row // 2 * 2, column // 2 * 2
        mean = data[:, :, top : top + 2, left : left + 2].mean((2, 3))
        torch.testing.assert_close(image[:, :, row, column], mean)
    torch.testing.assert_close(LowResolution(2)(image, [])["image"], image)
    clips = torch.stack([data, data + 1.0], dim=2)
    torch.testing.assert_close(
        LowResolution(2)(clips, [])["image"], torch.stack([image, image + 1.0], dim=2)
    )


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 10), (2, 3, 8, 4)])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.75])
def test_a_hole_is_a_rectangle_of_its_area(shape, share):
    """Zeros in it, the data around it, a draw for each sample, and the known pixels beside them."""
    num, hole = 300, Hole(share)
    data = torch.rand(num, *shape) + 0.5
    image = hole(data, generators(num))["image"]
    assert image.shape == (num, *hole.shapes(shape)["image"])
    assert torch.equal(hole(data, generators(num))["image"], image)
    given, known = image[:, :-1], image[:, -1:]
    torch.testing.assert_close(given, data * known)
    known = known.flatten(1, -3)[:, 0]  # the same in every frame
    for one in known:
        rows, columns = (one == 0).any(1), (one == 0).any(0)
        assert torch.equal(one == 0, rows[:, None] & columns[None])
        assert (rows.diff() != 0).sum() <= 2
        assert (columns.diff() != 0).sum() <= 2
        # The width is rounded to whole columns.
        assert abs(float((one == 0).sum()) - share * one.numel()) <= max(rows.sum() / 2, 1) + 1e-4
    assert len(known.unique(dim=0)) > 2
    assert ((known == 0).any(0)).all()


def test_the_distance_from_what_was_given(randn):
    """Of the pixels that are known alone: a constant more is that constant, elsewhere nothing."""
    data = randn(4, 2, 6, 6)
    for degradation in (LowResolution(3), Hole(0.4)):
        conditions = degradation(data, generators(4))
        assert float(degradation.differences(data, conditions).abs().max()) < 1e-12
        squares = degradation.differences(data + 0.5, conditions).flatten(1).square()
        torch.testing.assert_close(squares.mean(1).sqrt(), torch.full((4,), 0.5).double())
    hidden = 1 - conditions["image"][:, -1:]
    assert float(Hole(0.4).differences(data + hidden, conditions).abs().max()) < 1e-12
    detail = torch.ones(6, 6).double()
    detail[:, ::3] -= 3.0
    assert (
        float(LowResolution(3).differences(data + detail, LowResolution(3)(data, [])).abs().max())
        < 1e-12
    )


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="factor must be at least 2, got 1"):
        LowResolution(1)
    with pytest.raises(ValueError, match="divisible by the factor 3, got data of shape"):
        LowResolution(3).shapes((1, 8, 9))
    with pytest.raises(ValueError, match="above 0 and below 1, got 1"):
        Hole(1)
    with pytest.raises(ValueError, match="a hole is one in images"):
        Hole(0.5).shapes((3,))


def test_held_out_images_are_given_to_samples_and_shown_in_data_units(tmp_path):
    """Order i has the low resolution of held-out image i; the images themselves do not deviate."""
    data = Digits(0.5, tmp_path / "digits", 16, use_labels=False, degradation=LowResolution(4))
    data.prepare_data()
    data.setup("predict")
    order, real = next(iter(data.predict_dataloader())), next(data.heldout_batches())
    num = min(len(order.indices), len(real.x0))
    given = data.collate.given(order.conditions)["given"][:num]
    means = torch.nn.functional.avg_pool2d(real.x0[:num], 4)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(given, 4), means)
    conditions = {name: x[:num] for name, x in order.conditions.items()}
    assert float(data.collate.deviations(real.x0[:num], conditions).max()) < 1e-6
    pixels = data.to_images(real.x0[:num] + 0.1) - data.to_images(real.x0[:num])
    means = torch.nn.functional.avg_pool2d(2 * pixels, 4).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(data.collate.deviations(real.x0[:num] + 0.1, conditions), means)
