# SPDX-License-Identifier: Apache-2.0
"""A network of ours, written in the published structures and read again: the same F to the bit."""

import pytest
import torch
from teachers.published import write_published
from tiny import wake

from scm_lightning.networks import EDM2UNet, TimeEmbedding
from scm_lightning.teachers import EDM2SCMTeacher, EDM2Teacher

SIGMA_DATA = 0.7
OF_EDM2 = TimeEmbedding("log", "mp_fourier", SIGMA_DATA)


@pytest.mark.parametrize(
    ("kind", "loss", "options"),
    [
        (EDM2Teacher, "", {"modulation": "gain", "time_embedding": OF_EDM2}),
        (EDM2SCMTeacher, "TrigFlowLoss", {"modulation": "unscaled"}),
    ],
)
def test_there_and_back(kind, loss, options, tmp_path, randn):
    """Three levels, several heads, blocks that resample, classes, one-channel images."""
    net = EDM2UNet(
        (1, 16, 16),
        32,
        (1, 2, 2),
        2,
        (8, 4),
        channels_per_head=32,
        num_classes=10,
        exact_norm=True,
        **options,
    )
    wake(net, std=0.7)
    file = write_published(tmp_path / "a.pkl", net, net.state_dict(), SIGMA_DATA, loss)
    u, t, labels = (
        randn(3, 1, 16, 16).float(),
        torch.tensor([0.01, 0.8, 1.5]),
        torch.tensor([1, 4, 7]),
    )
    assert torch.equal(kind(str(file))(u, t, labels), net(u, t, labels))
