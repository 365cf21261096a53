# SPDX-License-Identifier: Apache-2.0
"""Every shipped configuration, size and variant takes two real steps at reduced width.

The digits', of which more is asked, are run in test_runs.py; overlays in test_overlays.py;
ablations in test_ablate.py.
"""

from dataclasses import replace
from pathlib import Path

import malformed_place
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from small_sets import write_set

from scm_lightning.cli import main
from scm_lightning.data import ShardIndex
from scm_lightning.data.index import Latents
from scm_lightning.data.latents import Autoencoder
from scm_lightning.storage import SavedRun
from scm_lightning.text import Words

CONFIGS = Path(__file__).parents[2] / "configs"
NETWORKS = {
    "UNet": {"model_channels": 8, "num_blocks": 1, "attention_pixels": "[8]"},
    "EDM2UNet": {
        "model_channels": 8,
        "channel_mult": "[1,2]",
        "num_blocks": 1,
        "channels_per_head": 8,
        "attention_pixels": "[8]",
    },
    "MLP": {"model_channels": 16, "num_blocks": 1},
    "DiT": {"model_channels": 16, "num_blocks": 1, "num_heads": 2},
    "VideoDiT": {"model_channels": 16, "num_blocks": 1, "num_heads": 2},
}
"""What makes a network small."""
DATA = {
    "cifar10": ((3, 8, 8), 10),
    "imagenet64": ((3, 8, 8), 1000),
    "imagenet512": ((4, 8, 8), 1000),
}
DATA |= {"fashion16": ((1, 16, 16), 10), "fashion32": ((1, 32, 32), 10)}
DATA |= {"fashion_latent": ((4, 8, 8), 10), "emoji16": ((3, 16, 16), 9)}
DATA |= {"emoji32_words": ((3, 32, 32), 0)}
DATA |= {"moving_digits": ((1, 8, 16, 16), 10)}
"""Shape and number of classes of the data, by a configuration's name without its last word."""
BASES = sorted(file.stem for file in CONFIGS.glob("*.yaml") if not file.stem.startswith("digits"))
SIZES = sorted(file.stem for file in (CONFIGS / "sizes").glob("*.yaml"))
VARIANTS = sorted(file.stem for file in (CONFIGS / "variants").glob("*.yaml"))


def parts_of(base):
    """Name of the data, kind of the run, and suffix of its recipe; none for the paper's."""
    if base.endswith("_from_edm2"):
        return base.removesuffix("_from_edm2"), "teacher", ""
    recipe = "_edm2scm" if base.endswith("_edm2scm") else ""
    data, _, kind = base.removesuffix(recipe).rpartition("_")
    return data, kind, recipe


def network_of(base):
    """Key of the trained network, and its class."""
    key = "network" if parts_of(base)[1] == "teacher" else "student"
    lines = (CONFIGS / f"{base}.yaml").read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.strip() == f"{key}:")
    return key, lines[place + 1].split("networks.")[1].split()[0]


def make_latents(shards):
    """Call the arrays of a folder latents of images of 32x32 pixels."""
    folder = str(shards / "autoencoder")
    AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4),
        norm_num_groups=2,
    ).save_pretrained(folder)
    weights = Autoencoder(folder, (1, 32, 32)).weights_sha256
    known = Latents(folder, weights, (1, 32, 32), "mean")
    replace(ShardIndex.read(shards), latents=known).write(shards)


def fit(base, folder, *overlays):
    """Two steps of a configuration with overlays, on the CPU by that overlay; its checkpoint."""
    (data, _, recipe), (key, network) = parts_of(base), network_of(base)
    shape, num_classes = DATA[data]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, *shape)).astype(np.uint8)
    labels = np.arange(24) % max(num_classes, 1)
    splits = dict.fromkeys(("train", "heldout"), (images, labels))
    words = Words() if data.endswith("words") else None
    write_set(folder / data, splits, num_classes, 255.0, 10, words)
    if data.endswith("latent"):
        make_latents(folder / data)
    options = {
        "trainer.default_root_dir": folder / base,
        "fresh": "true",  # variants of a base share its folder
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "data.init_args.root": folder / data,
        "data.init_args.batch_size": 5,
        "data.init_args.num_val_samples": 3,
        f"model.init_args.{key}.init_args.data_shape": list(shape),
    }
    for name, value in NETWORKS[network].items():
        options[f"model.init_args.{key}.init_args.{name}"] = value
    if base.endswith("_from_edm2"):
        options["model.init_args.init"] = "null"  # its file is of another width
    if key == "student" and f"{data}_teacher{recipe}" in BASES:
        teacher = folder / f"{data}_teacher{recipe}" / "checkpoints" / "last.ckpt"
        if not teacher.is_file():
            fit(f"{data}_teacher{recipe}", folder)
        options["model.init_args.teacher"] = teacher
    names = [base, *overlays, "overlays/cpu"]
    files = [CONFIGS / f"{name}.yaml" for name in names]
    main(
        [
            "fit",
            *(f"--config={file}" for file in files),
            *(f"--{name}={value}" for name, value in options.items()),
        ]
    )
    return SavedRun.read(folder / base / "checkpoints" / "last.ckpt").content


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all runs are, the teachers' among them."""
    with malformed_place.parser_built_once():
        yield tmp_path_factory.mktemp("configs")


def moved(checkpoint):
    """Whether training has changed something."""
    states = checkpoint["optimizer_states"][0]["state"].values()
    gradients = [float(state["exp_avg"].abs().max()) for state in states]
    return checkpoint["global_step"] == 2 and max(gradients) > 0


@pytest.mark.parametrize("base", BASES)
def test_configuration_trains(base, folder):
    checkpoint = fit(base, folder)
    assert moved(checkpoint)
    weights = [w for w in checkpoint["state_dict"].values() if w.is_floating_point()]
    assert all(bool(torch.isfinite(weight).all()) for weight in weights)


@pytest.mark.parametrize("size", SIZES)
def test_size_trains(size, folder):
    """On top of its base, which its name begins with; width reduced all the same."""
    base = size.rpartition("_")[0]
    assert moved(fit(base, folder, f"sizes/{size}"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_trains(variant, folder):
    """On top of the guided sCD of ImageNet 512."""
    checkpoint = fit("imagenet512_scd", folder, f"variants/{variant}")
    assert moved(checkpoint)
    assert any(name.startswith("terms.0.fake") for name in checkpoint["state_dict"]) == (
        variant == "vsd"
    )
