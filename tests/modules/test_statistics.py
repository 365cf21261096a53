# SPDX-License-Identifier: Apache-2.0
"""The scale of the first data: what is refused, what is said, and what is left in peace."""

import math

import pytest
import torch
from gaussian import PATH
from tiny import mlp, trainer
from torch.distributions import StudentT
from torch.utils.data import DataLoader

from scm_lightning import DiffusionModule
from scm_lightning.data import Batch
from scm_lightning.modules.statistics import LEAST_SAMPLES, check_scale, sample_moments

SIGMA = PATH.sigma_data


def check(x0):
    """What is said of data of one process."""
    return check_scale(sample_moments(x0), SIGMA, lambda tensor: tensor)


def is_refused(x0):
    try:
        check(x0)
    except ValueError:
        return True
    return False


def images(num, *stds, generator=None):
    """Gaussian images of 3 x 5 pixels, a channel for every standard deviation, in sigma_data."""
    noise = torch.randn(num, len(stds), 3, 5, generator=generator)
    return SIGMA * torch.tensor(stds)[:, None, None] * noise


def test_the_limits_are_those_of_the_formula():
    """Against the standard error of a variance, written out sample by sample."""
    torch.manual_seed(0)
    x0 = images(97, 3.0, 0.5) + 0.2
    with pytest.raises(ValueError, match=r"deviation sigma_data = 0\.7, got ") as caught:
        check(x0)
    squares = ((x0.double() - x0.double().mean()) ** 2).mean((1, 2, 3))
    variance = float(squares.mean())
    error = float(squares.std()) / math.sqrt(97) / (2 * variance)
    limit = math.exp(math.hypot(math.log(1.15), 6 * (1 + 10 / 97) * error))
    assert (
        f"got {variance**0.5:.4g} over 97 samples, where {SIGMA / limit:.3g} to "
        f"{SIGMA * limit:.3g} is accepted"
    ) in str(caught.value)


@pytest.mark.parametrize("shape", [(4,), (4, 6), (4, 3, 5), (4, 2, 3, 2)])
def test_a_channel_is_seen_whatever_the_shape(shape):
    """Standard deviations of 0.2 and 1.96, which make 1 together; and one channel that is dead."""
    torch.manual_seed(0)
    channels = (-1, *[1] * (len(shape) - 1))
    noise = SIGMA * torch.randn(256, *shape)
    quiet = torch.tensor([0.2, 0.2, 0.2, 1.96]).reshape(channels)
    with pytest.raises(ValueError, match=r"every channel of the data .* got 0\.1\d* in channel \d"):
        check(quiet * noise)
    dead = torch.tensor([1.0, 1.15, 0.0, 1.2]).reshape(channels)
    with pytest.raises(ValueError, match=r"got 0 in channel 2 over 256 samples, where 0\.233 to"):
        check(dead * noise + 0.3)


def test_another_scale_is_refused_and_limits_widen_with_few_samples():
    torch.manual_seed(0)
    assert is_refused(images(256, 1.2, 1.2, 1.2))
    assert is_refused(images(200, 100.0))
    assert is_refused(images(LEAST_SAMPLES, 100.0))
    assert not is_refused(images(LEAST_SAMPLES, 1.2, 1.2, 1.2))
    assert not is_refused(images(1, 1.2))
    x0 = images(64, 1.0)
    x0[5, 0, 0, 0] = math.nan
    assert is_refused(x0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda num: images(num, 1.0, 1.0, 1.0),
        lambda num: SIGMA * torch.randn(num, 2),
        lambda num: images(num, 1.0) * StudentT(4.0).sample((num, 1, 1, 1)) / 2**0.5,
        lambda num: images(num, 1.0, 1.0) * torch.exp(0.7 * torch.randn(num, 1, 1, 1) - 0.49),
        lambda num: (
            images(num, 0.5**0.5)
            + SIGMA * 0.75**0.5 * (torch.randint(3, (num, 1, 1, 1)) - 1).float()
        ),
        lambda num: images(num, 0.5, 0.7, 0.9, 1.5),  # of latents as they come
    ],
    ids=["images", "vectors", "heavy tails", "contrasts", "three classes", "latents"],
)
@pytest.mark.parametrize("num", [LEAST_SAMPLES, 32, 256])
def test_data_of_the_right_scale_are_left_in_peace(draw, num):
    torch.manual_seed(0)
    assert sum(is_refused(draw(num)) for _ in range(100)) == 0


def test_a_large_mean_is_said():
    torch.manual_seed(0)
    assert check(images(256, 1.0, 1.0) + 0.9 * SIGMA) is None
    shifted = images(256, 1.0, 1.0) - 1.5 * SIGMA
    assert "farther from 0 than sigma_data = 0.7; subtract it" in check(shifted)
    shifted[:, 1] -= 0.15
    assert "mean of channel 1 of the data is -1.2" in check(shifted)


@pytest.mark.parametrize("num_batches", [1, 4])
def test_a_small_set_is_measured_before_the_end_of_its_first_pass(num_batches):
    """200 samples at 100 times the scale: refused before the step of the last batch."""
    torch.manual_seed(0)
    x0 = 100 * SIGMA * torch.randn(num_batches, 200 // num_batches, 3)
    module = DiffusionModule(mlp(), PATH)
    run = trainer(num_batches)
    with pytest.raises(ValueError, match=r"got .* over 200 samples"):
        run.fit(module, DataLoader([Batch(each, None) for each in x0], batch_size=None))
    assert run.global_step == num_batches - 1
