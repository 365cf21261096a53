# SPDX-License-Identifier: Apache-2.0
"""Pickles of EDM, EDM2 and edm2_sCM: read as data, and refused if they hold anything else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from storage.persistent_replica import (
    Node,
    stability_encoder,
    tree,
    write_persistent,
)

from scm_lightning.storage.persistent_pickle import read_persistent

WEIGHTS = {
    "model.gain": torch.tensor(0.75),
    "model.enc.8x8_conv.weight": torch.arange(24.0).reshape(4, 3, 2, 1) / 16,
    "model.enc.8x8_conv.bias": torch.arange(4.0) / 8,
    "model.enc.4x4_down.conv0.resample_filter": torch.full((1, 1, 2, 2), 0.25),
    "model.dec.4x4_in0.weight": torch.arange(6.0).reshape(2, 3) / 8,
}
"""Numbers that float16 holds exactly."""


def network() -> Node:
    net = tree(
        WEIGHTS,
        {
            "": "EDMPrecond",
            "model": "SongUNet",
            "model.enc": "ModuleDict",
            "model.dec": "ModuleDict",
        }
        | {"model.enc.4x4_down": "UNetBlock"},
        kwargs={"": {"img_resolution": 8, "channel_mult": [1, 2], "init": {"w": np.sqrt(0.2)}}},
        attributes={"": {"sigma_data": 0.7}, "model.enc.4x4_down": {"skip_scale": np.sqrt(0.5)}},
        buffers={"model.enc.4x4_down.conv0.resample_filter"},
    )
    net.children["model"].children["map_augment"] = None
    net.children["model"].parameters["bias"] = None
    return net


@pytest.mark.parametrize("style", ["edm", "edm2", "edm2_scm"])
def test_a_network_is_read_to_the_last_bit(style: str, tmp_path: Path) -> None:
    """Names, order, numbers, arguments, attributes, in float32 whatever the file has."""
    file = write_persistent(tmp_path / "net.pkl", network(), style, encoder=stability_encoder())
    ema, encoder, _ = read_persistent(file)
    found = ema.state_dict()
    assert list(found) == list(WEIGHTS)
    for name, weight in WEIGHTS.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], weight)
    assert ema.class_name == "EDMPrecond"
    assert ema.init_kwargs == {
        "img_resolution": 8,
        "channel_mult": [1, 2],
        "init": {"w": 0.2**0.5},
    }
    assert ema.attribute("sigma_data") == 0.7
    down = ema.children["model"].children["enc"].children["4x4_down"]
    assert (down.class_name, down.attribute("skip_scale")) == ("UNetBlock", np.sqrt(0.5))
    if style == "edm":
        assert encoder is None
    else:
        assert encoder.attribute("vae_name") == "stabilityai/sd-vae-ft-mse"
        assert torch.equal(
            encoder.attribute("scale"),
            torch.from_numpy(np.float32(0.5) / np.float32([4.17, 4.62, 3.71, 3.28])),
        )
