# SPDX-License-Identifier: Apache-2.0
"""Latents: from images through an autoencoder into shards, and back to images."""

import ast
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

import scm_lightning.data as room
from scm_lightning.cli import main
from scm_lightning.data import ShardIndex, Shards, Split, latents
from scm_lightning.data.collate import Collate
from scm_lightning.data.index import Latents
from scm_lightning.data.latents import WEIGHTS_FILE, Autoencoder
from scm_lightning.preparation.latent_content import EncodedLatents, paper_statistics

SIGMA_DATA = 0.7
LAZY = {"diffusers", "huggingface_hub"}


def save_autoencoder(folder, channels=3, latent_channels=2, seed=0):
    """A random autoencoder that halves the sides, whose posteriors are wide; its folder."""
    torch.manual_seed(seed)
    model = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=latent_channels,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        model.decoder.conv_out.weight *= 5  # beyond what is clipped
    model.save_pretrained(folder)
    return str(folder)


def images_of(shape, num=7):
    return torch.rand(num, *shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder") / "color")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Fourteen color pictures of 8x8 pixels in two folders."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(7):
            array = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(array).save(root / name / f"{number}.png")
    return root


def prepared(pictures, folder, out, *more):
    """Shards of latents by `scm prepare`, and their data module, which is set up."""
    words = ["prepare", "--source", str(pictures), "--out", str(out), "--size", "8"]
    words += ["--heldout", "4", "--workers", "0", "--latents", folder, "--latents_batch_size", "3"]
    main([*words, *more])
    data = Shards(sigma_data=SIGMA_DATA, root=str(out), batch_size=5)
    data.setup("fit")
    return data


def test_images_go_in_from_minus_one_to_one_and_come_back_clipped(folder, monkeypatch):
    """Agrees with diffusers called at once, also where the work is cut into chunks."""
    model, images = AutoencoderKL.from_pretrained(folder).eval(), images_of((3, 8, 12))
    autoencoder = Autoencoder(folder, (3, 8, 12))
    monkeypatch.setattr(latents, "CHUNK_PIXELS", 2 * 8 * 12)
    with torch.no_grad():
        posterior = model.encode(2 * images - 1).latent_dist
        z = 30 * posterior.mean
        expected = ((model.decode(z).sample + 1) / 2).clamp(0, 1)
    mean, std = autoencoder.encode(images)
    assert autoencoder.latent_shape == mean.shape[1:] == (2, 4, 6)
    torch.testing.assert_close(mean, posterior.mean)
    torch.testing.assert_close(std, posterior.std)
    torch.testing.assert_close(autoencoder.decode(z), expected, rtol=1e-4, atol=1e-5)
    assert 0.05 < float((expected == 0).float().mean()) < 0.5


def test_unit_images_go_in_as_they_are(folder, pictures, tmp_path):
    """EDM2's way; the shards say so, and are decoded so."""
    images, unit = images_of((3, 8, 8)), Autoencoder(folder, (3, 8, 8), "unit")
    with torch.no_grad():
        expected = unit.model.encode(images).latent_dist.mean
        decoded = unit.model.decode(expected).sample
    torch.testing.assert_close(unit.encode(images)[0], expected)
    torch.testing.assert_close(unit.decode(expected), decoded.clamp(0, 1))
    signed = Autoencoder(folder, (3, 8, 8)).encode(images)[0]
    assert float((signed - expected).abs().max()) > 0.1
    index = prepared(pictures, folder, tmp_path / "shards", "--latents_pixels=unit").index
    assert index.latents.pixels == "unit"
    assert Autoencoder.of(index.latents).pixels == "unit"
    assert paper_statistics((4, 8, 8), index.latents)[0] == [5.81, 3.25, 0.12, -2.15]


def test_one_channel_is_repeated_and_averaged_back(folder):
    grey, color = Autoencoder(folder, (1, 8, 8)), Autoencoder(folder, (3, 8, 8))
    images = images_of((1, 8, 8))
    mean, std = color.encode(images.repeat(1, 3, 1, 1))
    torch.testing.assert_close(grey.encode(images), (mean, std))
    with torch.no_grad():
        decoded = color.model.decode(mean).sample.mean(dim=1, keepdim=True)
    torch.testing.assert_close(grey.decode(mean), ((decoded + 1) / 2).clamp(0, 1))


def test_moments_are_those_of_the_drawn_latents(folder):
    """Mean and variance of N(m, s^2) over all samples and positions, in float64."""
    rng = np.random.default_rng(0)
    for stored, parts in (("mean", 1), ("mean_std", 2)):
        content = EncodedLatents(Autoencoder(folder, (3, 8, 8)), stored, dtype="float32")
        arrays = rng.uniform(0, 9, (7, 2 * parts, 4, 4)).astype(np.float32)
        m, s = arrays[:, :2].astype(np.float64), arrays[:, 2:].astype(np.float64)
        num, sums, squares = content.moments(arrays)
        variance = m.var(axis=(0, 2, 3))
        if stored == "mean_std":
            variance += (s**2).mean(axis=(0, 2, 3))
        np.testing.assert_allclose(np.array(sums) / num, m.mean(axis=(0, 2, 3)), rtol=1e-12)
        found = np.array(squares) / num - (np.array(sums) / num) ** 2
        np.testing.assert_allclose(found, variance, rtol=1e-10)


def drawing(num, mean, std):
    """A collate of latents stored as means and deviations, and `num` equal arrays."""
    index = ShardIndex(
        {name: Split([]) for name in ("train", "heldout")},
        (2, 4, 3),
        "float32",
        0,
        [],
        [0.0, 0.0],
        [SIGMA_DATA, SIGMA_DATA],
        255.0,
        "a test",
        latents=Latents("none", "", (3, 8, 6), "mean_std"),
    )
    halves = [np.full((num, 2, 4, 3), value, np.float32) for value in (mean, std)]
    numbers = np.arange(num)
    collate = Collate(index, SIGMA_DATA, seed=5)
    return lambda where, by=collate: by(np.hstack(halves), numbers, numbers, where).x0, collate


def test_drawn_latents_have_the_mean_and_deviation_of_the_posterior():
    """Over N draws the mean is off by s / sqrt(N), the deviation by s / sqrt(2 N), at most 4 of."""
    draw, _ = drawing(num=900, mean=3.0, std=0.2)
    x0 = draw(range(900)).double()
    count = x0.numel()
    assert abs(float(x0.mean()) - 3.0) < 4 * 0.2 / count**0.5
    assert abs(float(x0.std()) - 0.2) < 4 * 0.2 / (2 * count) ** 0.5
    across = torch.corrcoef(x0.flatten(1).T) - torch.eye(24)
    assert float(across.abs().max()) < 5 / 900**0.5


def test_a_draw_follows_from_seed_and_position():
    draw, collate = drawing(num=7, mean=3.0, std=0.2)
    x0 = draw(range(7))
    assert torch.equal(x0, draw(range(7)))
    assert torch.equal(x0[3:], draw(range(3, 10))[:4])
    assert not torch.isclose(x0, draw(range(7, 14))).any()
    assert not torch.isclose(x0, draw(range(7), replace(collate, seed=6))).any()


@pytest.fixture(scope="module")
def sampled(pictures, folder, tmp_path_factory):
    """A data module of posteriors in float32."""
    out = tmp_path_factory.mktemp("sampled") / "out"
    return prepared(pictures, folder, out, "--latents_dtype", "float32")


def test_every_pass_draws_anew_and_every_run_the_same(sampled):
    """By the numbers of the samples, since every pass has another order."""

    def passes():
        loader = sampled.train_dataloader()
        found = []
        for _ in range(2):
            batches = list(loader)
            indices = torch.cat([batch.indices for batch in batches])
            found.append(torch.cat([batch.x0 for batch in batches])[indices.argsort()])
        return found

    first, second = passes()
    assert first.shape == (10, 2, 4, 4)
    assert not torch.isclose(first, second).any()
    assert all(torch.equal(a, b) for a, b in zip(passes(), (first, second), strict=True))


def test_shards_decode_to_what_the_autoencoder_alone_makes(pictures, folder, tmp_path):
    """And mean and deviation of the data are those of the index: 0 and sigma_data."""
    more = ("--latents_stored", "mean", "--latents_dtype", "float32")
    data = prepared(pictures, folder, tmp_path / "out", *more)
    (batch,) = data.reference_batches()
    assert data.index.shape == data.index.stored_shape == (2, 4, 4)
    torch.testing.assert_close(batch.x0.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    spread = batch.x0.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(spread, torch.full((2,), SIGMA_DATA), rtol=1e-5, atol=0)
    arrays = data.index.data_to_arrays(batch.x0, SIGMA_DATA)
    again = data.index.arrays_to_data(arrays, SIGMA_DATA)
    torch.testing.assert_close(again, batch.x0, rtol=1e-6, atol=1e-6)
    files = sorted(pictures.rglob("*.png"))
    images = torch.stack([torch.from_numpy(np.array(Image.open(file))) for file in files])
    autoencoder = Autoencoder(folder, (3, 8, 8))
    direct = autoencoder.decode(autoencoder.encode(images.permute(0, 3, 1, 2) / 255)[0])
    apart = (data.to_images(batch.x0)[:, None] - direct).abs().flatten(2).amax(dim=2)
    assert float(apart.amin(dim=1).max()) < 1e-4
    assert apart.argmin(dim=1).unique().numel() == 10
    assert float(apart.median()) > 1e-2  # the pictures can be told apart


def test_the_same_command_gives_the_same_shards(pictures, folder, sampled, tmp_path):
    again = prepared(pictures, folder, tmp_path / "out", "--latents_dtype", "float32")
    assert again.index == sampled.index
    assert again.index.stored_shape == (4, 4, 4)


def test_the_papers_statistics_are_for_four_channels(pictures, folder, tmp_path, capsys):
    four = save_autoencoder(tmp_path / "four", latent_channels=4)
    index = prepared(pictures, four, tmp_path / "out", "--normalize", "paper").index
    assert index.mean == [1.56, -0.695, 0.483, 0.729]
    assert index.std == [5.27, 5.91, 4.21, 4.31]
    with pytest.raises(ValueError, match="of sd-vae-ft-mse, got latents of 2; normalize by"):
        paper_statistics((2, 4, 4))
    words = ["prepare", "--source", str(pictures), "--out", str(tmp_path / "x"), "--size", "8"]
    with pytest.raises(SystemExit):
        main([*words, "--normalize", "paper"])
    assert "must be measured or range for pixels, got paper" in capsys.readouterr().err


def test_only_the_autoencoder_of_the_latents_decodes_them(sampled, folder, tmp_path):
    known = sampled.index.latents
    digest = hashlib.sha256((Path(folder) / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert known == Latents(folder, digest, (3, 8, 8), "mean_std")
    moved = Path(folder).rename(Path(folder).with_name("moved"))
    try:
        with pytest.raises(ValueError, match=r"the autoencoder .*color must hold config.json"):
            Autoencoder.of(known)
        assert Autoencoder.of(known, str(moved)).latent_shape == (2, 4, 4)
    finally:
        moved.rename(folder)
    other = save_autoencoder(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=f"of SHA-256 {digest}, got [0-9a-f]{{64}}; give"):
        Autoencoder.of(known, other)


def test_what_cannot_be_encoded_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"images of 3 channels, .*, got 2; prepare"):
        Autoencoder(folder, (2, 8, 8))
    with pytest.raises(ValueError, match="sides that 2 divides, got 8x7; prepare"):
        Autoencoder(folder, (3, 8, 7))
    with pytest.raises(ValueError, match="on a device of this machine, got meters: "):
        EncodedLatents(Autoencoder(folder, (3, 8, 8)), device="meters")
    huge = AutoencoderKL.from_pretrained(save_autoencoder(tmp_path / "huge"))
    with torch.no_grad():
        huge.quant_conv.bias[:2] = 1e6
    huge.save_pretrained(tmp_path / "huge")
    content = EncodedLatents(Autoencoder(str(tmp_path / "huge"), (3, 8, 8)))
    with pytest.raises(ValueError, match="finite in float16"):
        content.encode(np.zeros((2, 3, 8, 8), np.uint8))
    (tmp_path / "huge" / WEIGHTS_FILE).write_bytes(b"no weights")
    with pytest.raises(
        ValueError, match=r"must hold diffusers' AutoencoderKL: .*; give its folder"
    ):
        Autoencoder(str(tmp_path / "huge"), (3, 8, 8))


def test_a_name_on_the_hub_is_downloaded(folder, monkeypatch):
    """By huggingface_hub, of which the call alone is replaced here."""

    def offline(name, allow_patterns):
        raise OSError("no network\nand much more")

    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: asked.append(name) or folder,
    )
    assert Autoencoder("owner/vae", (3, 8, 8)).name == "owner/vae"
    assert asked == ["owner/vae"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"^owner/vae must be .*: no network; give its folder$"):
        Autoencoder("owner/vae", (3, 8, 8))


def test_diffusers_is_asked_for_when_it_is_needed(folder, monkeypatch):
    for file in Path(room.__file__).parent.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", "")] + [alias.name for alias in node.names]
                assert not {name.split(".")[0] for name in names} & LAZY, file
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"pip install -c constraints.txt .*\[latents\]"):
        Autoencoder(folder, (3, 8, 8))
