# SPDX-License-Identifier: Apache-2.0
"""The teacher's first look at the data: a trained one passes, and what is mistaken is found."""

import copy

import pytest
import torch
from teachers.toy import toy_data, train_on_toy

from scm_lightning.core import Conditions, TrigFlow
from scm_lightning.networks import UNet
from scm_lightning.teachers import FirstLook, first_look

SHAPE, CLASSES, PATH = (3, 8, 8), 4, TrigFlow(0.7)


@pytest.fixture(scope="module")
def trained() -> UNet:
    torch.manual_seed(0)
    net = UNet(
        SHAPE, 16, (1, 2), num_blocks=1, attention_pixels=(8,), dropout=0.0, num_classes=CLASSES
    )
    train_on_toy(net, [*net.parameters()], SHAPE, CLASSES, PATH.sigma_data)
    return net.eval()


def look(net: torch.nn.Module, scale: float = 1.0, offset: int = 0) -> FirstLook:
    x0, labels = toy_data(40, SHAPE, CLASSES, PATH.sigma_data, seed=999)
    given = Conditions((labels + offset) % CLASSES)
    return first_look(net, scale * x0, given, PATH, CLASSES)


def test_a_trained_teacher_is_better_than_a_linear_filter(trained: UNet) -> None:
    found = look(trained)
    assert found.misfit() == ""
    assert sum(found.teacher) < 0.5 * sum(found.linear)


@pytest.mark.parametrize("offset", [1, -1])
def test_labels_off_by_one_are_found(trained: UNet, offset: int) -> None:
    assert f"label moved by {-offset:+d}" in look(trained, offset=offset).misfit()


def test_a_wrong_sign_scale_or_layout_is_found(trained: UNet) -> None:
    flipped = copy.deepcopy(trained)
    flipped.output.weight.data.neg_()
    flipped.output.bias.data.neg_()
    assert "linear filter" in look(flipped).misfit()
    assert "linear filter" in look(trained, scale=0.3).misfit()
    reordered = copy.deepcopy(trained)
    for block in [*reordered.down, *reordered.middle, *reordered.up]:
        if block.attention is not None:
            weight = block.attention.qkv.weight
            weight.data = weight.reshape(3, -1, weight.shape[1]).transpose(0, 1).reshape_as(weight)
    assert sum(look(reordered).teacher) > 1.05 * sum(look(trained).teacher)


def test_the_linear_filter_is_the_best_for_gaussians_with_a_spectrum() -> None:
    """Closed form: the error of Wiener's filter is P N / (P + N) in each frequency."""
    generator = torch.Generator().manual_seed(3)
    power = 1 / (1 + torch.arange(8.0)[:, None] + torch.arange(8.0)[None, :])
    power = PATH.sigma_data**2 * power / power.mean()
    noise = torch.fft.fftn(
        torch.randn(5000, 2, 8, 8, generator=generator), dim=(2, 3), norm="ortho"
    )
    both = power.flip((0, 1)).roll((1, 1), (0, 1))  # real data have the same at k and -k
    power = (power + both) / 2
    x0 = torch.fft.ifftn(noise * power.sqrt(), dim=(2, 3), norm="ortho").real

    def network(u: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return torch.zeros_like(u)

    x0 = x0[:64]
    found = first_look(network, x0, Conditions(), PATH)
    for ratio, error in zip((0.3, 1.0, 3.0), found.linear, strict=True):
        N = (ratio * PATH.sigma_data) ** 2
        expected = float((power * N / (power + N)).mean()) / PATH.sigma_data**2
        assert error == pytest.approx(expected, rel=0.1)
