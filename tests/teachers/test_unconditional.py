# SPDX-License-Identifier: Apache-2.0
"""Samples of no class go to the network without classes, and guidance leads away from it."""

import pytest
import torch
from torch import Tensor

from scm_lightning.core import Conditions, TrigFlow
from scm_lightning.core.guidance import Guided
from scm_lightning.teachers.unconditional import ClassTeacher

SHAPE = (2, 3, 5)


class Scaled(ClassTeacher):
    """F = scale u + t + label."""

    def __init__(self, scale: float, num_classes: int, unconditional: ClassTeacher | None = None):
        super().__init__(
            f"scale {scale}",
            SHAPE,
            unconditional,
            num_classes=num_classes,
            noise_range=(0.01, 100.0),
            sigma_data=0.7,
        )
        self.scale = scale

    def F_of_class(self, u: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        added = t if labels is None else t + labels
        return self.scale * u + added[:, None, None, None]


def test_rows_go_to_their_network_and_keep_their_order() -> None:
    teacher = Scaled(2.0, 4, Scaled(-1.0, 0))
    u, t = torch.randn(4, *SHAPE), torch.tensor([0.2, 0.4, 0.6, 0.8])
    shift = t[:, None, None, None]
    for labels, scale, added in [
        ([-1, 3, -1, 0], [-1, 2, -1, 2], [0, 3, 0, 0]),
        ([1, 3, 2, 0], [2, 2, 2, 2], [1, 3, 2, 0]),
        ([-1, -1, -1, -1], [-1, -1, -1, -1], [0, 0, 0, 0]),
    ]:
        expected = u * torch.tensor(scale)[:, None, None, None] + shift
        expected += torch.tensor(added)[:, None, None, None]
        torch.testing.assert_close(teacher(u, t, torch.tensor(labels)), expected)
    torch.testing.assert_close(teacher(u, t), -u + shift)


def test_guidance_is_the_line_through_both_networks() -> None:
    teacher = Scaled(2.0, 4, Scaled(-1.0, 0))
    u, t, labels = torch.randn(4, *SHAPE), torch.full((4,), 0.5), torch.tensor([0, 1, 2, 3])
    F = Guided(teacher, Conditions(labels), torch.full((4,), 1.5))(u, t)
    own, none = teacher(u, t, labels), teacher(u, t)
    torch.testing.assert_close(F, none + 1.5 * (own - none))


def test_what_has_no_network_is_refused() -> None:
    u, t = torch.randn(3, *SHAPE), torch.full((3,), 0.5)
    for teacher, given, labels, match in [
        (Scaled(1.0, 4), u, None, "never trained without a class.* set its unconditional"),
        (Scaled(1.0, 4), u, [0, -1, 1], "never trained without a class"),
        (Scaled(1.0, 0), u, [0, 0, 1], "has no classes, got labels"),
        (Scaled(1.0, 0), u[:, :1], None, r"shape \(2, 3, 5\), got \(1, 3, 5\)"),
    ]:
        with pytest.raises(ValueError, match=match) as caught:
            teacher(given, t, None if labels is None else torch.tensor(labels))
        assert "\n" not in str(caught.value)
    for classes, other in [(4, Scaled(1.0, 4)), (0, Scaled(1.0, 0))]:
        with pytest.raises(ValueError, match="without classes beside one with classes"):
            Scaled(1.0, classes, other)
    with pytest.raises(ValueError, match=r"trained with 0.7, the student has 0.5"):
        Scaled(1.0, 4, Scaled(1.0, 0)).on_path(TrigFlow(0.5))
