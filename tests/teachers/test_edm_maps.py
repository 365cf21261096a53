# SPDX-License-Identifier: Apache-2.0
"""DDPM++ of edm2_sCM as a U-Net of ours: F of its formulas, with labels, augmentation and t_k."""

import pytest
import torch
from teachers.edm_reference import output
from teachers.sources_edm import CLASSES, SHAPE, fixed, weights

from scm_lightning.teachers.edm_layout import Layout
from scm_lightning.teachers.edm_maps import ddpmpp_from_edm2_scm


@pytest.mark.parametrize(("classes", "augment"), [(CLASSES, 0), (0, 9)])
@pytest.mark.parametrize("two_times", [False, True])
@pytest.mark.parametrize("widths", [(16, 32), (16, 16, 32)])
def test_F_is_that_of_the_formulas(classes, augment, two_times, widths) -> None:
    given = {"classes": classes, "augment": augment, "two_times": two_times, "widths": widths}
    found = weights("trigflow", attention=(4,), blocks=2, **given)
    network = ddpmpp_from_edm2_scm(found, {"dropout": 0.2})
    assert network.dropout == 0.2
    network.eval()
    u, t = fixed("u", (3, *SHAPE)), torch.tensor([0.004, 0.9, 1.5645]).double()
    labels = torch.tensor([3, 0, 1]) if classes else None
    one_hot = torch.eye(CLASSES).double()[labels] if classes else None
    augments = fixed("a", (3, 9)) if augment else None
    t_end = t / 3 if two_times else None
    F = network(u, t, labels, t_end=t_end, augment=augments)
    expected = output(found, u, t, one_hot, augments, t_end)
    torch.testing.assert_close(F, expected, rtol=1e-10, atol=1e-10)


def test_a_norm_of_another_kind_is_refused() -> None:
    """EDM's affine has half the rows: neither file is taken for the other."""
    found = weights("ddpmpp")
    with pytest.raises(ValueError, match="scale.weight has shape"):
        ddpmpp_from_edm2_scm(found, {})


def test_sizes_are_read_off_the_names_in_any_order() -> None:
    """Safetensors sort their names."""
    found = weights("ddpmpp", widths=(16, 32, 48), blocks=3, attention=(8, 2))
    layout = Layout.read(dict(sorted(found.items())))
    assert layout == Layout.read(found)
    assert (layout.data_shape, layout.widths, layout.num_blocks) == (SHAPE, (16, 32, 48), 3)
    assert (layout.num_classes, layout.augment_channels) == (CLASSES, 9)
    assert [place.name for place in layout.up()][:5] == [
        *(f"dec.2x2_block{index}" for index in range(4)),
        "dec.4x4_up",
    ]
