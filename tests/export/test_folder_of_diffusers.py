# SPDX-License-Identifier: Apache-2.0
"""A folder of diffusers: what is drawn from it is what the run draws, and what is said if not."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from data.test_latents import save_autoencoder
from diffusers import DiffusionPipeline, ModelMixin
from export.students import NETWORKS, SHAPE, SIGMA_DATA, student
from PIL import Image

from scm_lightning.core import sample_generators
from scm_lightning.data.index import Latents
from scm_lightning.data.latents import Autoencoder
from scm_lightning.export import Sampler, diffusers_folder
from scm_lightning.export.described import write_diffusers
from scm_lightning.export.diffusers_folder import SCMPipeline, write_folder

NUM, SEED = 5, 3


def describe_nothing(*of_folder):
    """Write no card, for what is not about it."""


def written(folder, name, **options):
    export, facts = student(name, **options)
    write_folder(folder, export, facts, describe_nothing)
    return folder, export


def loaded(folder, **options):
    pipeline = SCMPipeline.from_pretrained(folder, low_cpu_mem_usage=False, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generators(num=NUM):
    return sample_generators(range(num), SEED)


@pytest.fixture(scope="module")
def guided(tmp_path_factory):
    """The pipeline of a guided network of three classes, and its export."""
    folder, export = written(tmp_path_factory.mktemp("guided") / "made", "mlp")
    return loaded(folder), export


@pytest.fixture(scope="module")
def latent_of_images(tmp_path_factory):
    """The pipeline of a network of latents, and its export."""
    place = tmp_path_factory.mktemp("latents")
    name = save_autoencoder(place / "autoencoder")
    sha256 = Autoencoder(name, (3, 8, 16)).weights_sha256
    of_images = Latents(name, sha256, (1, 8, 16), "mean")
    folder, export = written(place / "made", "unet", latents=of_images)
    return loaded(folder), export, folder


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_are_those_of_the_run(name, tmp_path):
    """Independent of the comparison inside: another seed and number, the sampler of a file."""
    folder, export = written(tmp_path / "made", name)
    sampler, pipeline = Sampler.of(export), loaded(folder)
    for steps in sampler.facts.sampling.num_steps:
        own = torch.as_tensor(sampler.sample_arrays(n=NUM, steps=steps, seed=SEED))
        drawn = pipeline(
            NUM, num_inference_steps=steps, generator=generators(), output_type="latent"
        ).images
        assert float(own.std()) > 0.05 * SIGMA_DATA
        torch.testing.assert_close(drawn, own, rtol=1e-5, atol=1e-5 * SIGMA_DATA)
    library, kind = json.loads((folder / "model_index.json").read_text())["network"]
    own_class = "SCMNetwork" if not export.entries["network"].count("diffusers.") else None
    assert (kind, library) == (
        (own_class, "scm_lightning.export.scm_network") if own_class else (kind, "diffusers")
    )
    assert isinstance(pipeline.network, ModelMixin)


def test_classes_and_guidance_are_those_asked_for(guided):
    pipeline, export = guided
    sampler, asked = Sampler.of(export), ["shirt", "bag", 1, -1, 2]
    own = sampler.sample_arrays([2, 0, 1, 1, 2], steps=2, seed=SEED, guidance=1.9)
    drawn = pipeline(NUM, asked, 2, 1.9, generators(), output_type="latent").images.numpy()
    np.testing.assert_allclose(drawn[[0, 1, 2, 4]], own[[0, 1, 2, 4]], atol=1e-5 * SIGMA_DATA)
    assert np.abs(drawn[3] - own[3]).max() > 1e-3 * SIGMA_DATA
    by_default = pipeline(NUM, asked, 2, None, generators(), output_type="latent").images
    last_of_run = pipeline(NUM, asked, 2, 1.6, generators(), output_type="latent").images
    assert torch.equal(by_default, last_of_run)
    assert not torch.allclose(by_default, torch.as_tensor(drawn))
    one = pipeline(2, "coat", generator=generators(2), output_type="latent").images
    number = pipeline(2, torch.tensor([1, 1]), generator=generators(2), output_type="latent").images
    assert torch.equal(one, number)


def test_output_types_are_one_picture(tmp_path):
    """Pixels of gray images: data x std / sigma_data + mean, over 255."""
    folder, _ = written(tmp_path / "made", "dit", shape=(1, 4, 8))
    pipeline = loaded(folder)
    found = {
        kind: pipeline(3, generator=generators(3), output_type=kind).images
        for kind in ("latent", "pt", "np", "pil")
    }
    expected = ((found["latent"] * (30 / SIGMA_DATA) + 100) / 255).clamp(0, 1)
    torch.testing.assert_close(found["pt"], expected)
    np.testing.assert_allclose(found["np"], expected.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    pixels = np.stack([np.asarray(each) for each in found["pil"]])
    np.testing.assert_array_equal(pixels, (expected[:, 0] * 255).round().numpy())
    assert all(each.mode == "L" and each.size == (8, 4) for each in found["pil"])
    (images,) = pipeline(3, generator=generators(3), output_type="pt", return_dict=False)
    assert torch.equal(images, found["pt"])


def test_latents_become_images_by_the_autoencoder(latent_of_images):
    """It is in the folder: gray images, the mean of its three channels, as in a run."""
    pipeline, export, folder = latent_of_images
    sampler = Sampler.of(export)
    assert (folder / "vae" / "diffusion_pytorch_model.safetensors").is_file()
    images = pipeline(NUM, generator=generators(), output_type="pt").images
    own = sampler.to_pictures(sampler.sample_arrays(n=NUM, steps=1, seed=SEED))
    assert images.shape == (NUM, 1, 8, 16)
    torch.testing.assert_close(images, own, rtol=1e-4, atol=1e-5)


def test_a_folder_of_latents_whose_autoencoder_is_gone_is_not_written(latent_of_images, tmp_path):
    _, export, _ = latent_of_images
    facts = diffusers_folder.SamplingFacts.of(export)
    gone = replace(facts.data.latents, autoencoder=str(tmp_path / "gone"))
    moved = replace(facts, data=replace(facts.data, latents=gone))
    with pytest.raises(ValueError, match=r"autoencoder .*gone must hold config.json"):
        write_folder(tmp_path / "made", export, moved, describe_nothing)
    assert [*tmp_path.iterdir()] == []


def test_noise_comes_from_what_is_given(guided):
    pipeline, _ = guided
    noise = torch.randn(2, *SHAPE)
    drawn = pipeline(2, latents=noise, output_type="latent").images
    t, labels = torch.full((2,), float(np.arctan(80 / SIGMA_DATA))), torch.arange(2)
    F = pipeline.network(noise, t, labels, torch.full((2,), 1.2))
    expected = SIGMA_DATA * (t.cos()[0] * noise - t.sin()[0] * F)
    torch.testing.assert_close(drawn, expected.detach(), rtol=1e-5, atol=1e-6)
    one = [
        pipeline(NUM, generator=torch.Generator().manual_seed(seed), output_type="latent").images
        for seed in (1, 1, 2)
    ]
    assert torch.equal(one[0], one[1])
    assert not torch.equal(one[0], one[2])


def test_steps_are_told_of(guided):
    pipeline, _ = guided
    told = []
    last = pipeline(
        2,
        num_inference_steps=2,
        generator=generators(2),
        output_type="latent",
        callback=lambda step, t, x: told.append((step, round(t, 4), x)),
    ).images
    start = round(float(np.arctan(80 / SIGMA_DATA)), 4)
    assert [each[:2] for each in told] == [(0, start), (1, 0.9)]
    assert torch.equal(told[-1][2], last)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class_labels": 3}, r"3 numbers from -1 to 2, .* got \[3, 3, 3\]"),
        ({"class_labels": [0, 1]}, r"class_labels must be 3 numbers .* got \[0, 1\]"),
        ({"class_labels": "hat"}, "must be of bag, coat, shirt, got 'hat'"),
        ({"class_labels": [0.5, 1, 2]}, "must be 3 numbers"),
        ({"num_inference_steps": 7}, "must be one of 1, 2, for which the folder has times, got 7"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number, got nan"),
        ({"latents": torch.zeros(3, 2, 8, 4)}, r"latents must be \(3, 2, 4, 8\), got"),
        ({"generator": [torch.Generator()]}, "as many as batch_size, 3, got 1"),
        ({"output_type": "jpeg"}, "output_type must be one of .* got 'jpeg'"),
        ({"output_type": "pil"}, "must be 'pt' or 'latent' for data that are no gray or color"),
    ],
)
def test_what_cannot_be_drawn_is_refused(guided, options, said):
    with pytest.raises(ValueError, match=said):
        guided[0](3, **options)


def test_no_class_and_no_guidance_are_refused_where_the_network_has_none(tmp_path):
    folder, _ = written(tmp_path / "classes", "unet2d")
    with pytest.raises(ValueError, match="1 numbers from 0 to 2"):
        loaded(folder)(class_labels=-1)
    with pytest.raises(ValueError, match="guidance_scale must be None"):
        loaded(folder)(guidance_scale=1.5)
    folder, _ = written(tmp_path / "none", "dit")
    with pytest.raises(ValueError, match="class_labels must be None"):
        loaded(folder)(class_labels=1)


def test_files_are_as_open_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        folder, _ = written(tmp_path / "made", "dit")
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert modes == {0o640}
    assert {folder.stat().st_mode & 0o777, (folder / "network").stat().st_mode & 0o777} == {0o750}


def test_only_such_a_folder_is_replaced_and_only_if_asked_for(tmp_path):
    folder, _ = written(tmp_path / "made", "dit")
    (folder / "old").touch()
    export, facts = student("mlp")
    with pytest.raises(ValueError, match=r"made is there already; .*--overwrite"):
        write_folder(folder, export, facts, describe_nothing)
    write_folder(folder, export, facts, describe_nothing, overwrite=True)
    assert not (folder / "old").exists()
    assert json.loads((folder / "network/config.json").read_text())["class_path"].endswith("MLP")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    with pytest.raises(ValueError, match=r"mine is no folder of diffusers"):
        write_folder(mine, export, facts, describe_nothing, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "mine"]


def test_a_folder_that_draws_something_else_is_not_written(tmp_path, monkeypatch):
    """As if a model of diffusers were told another time than the run tells it."""
    export, facts = student("unet2d")
    own = diffusers_folder.pipeline_of

    def other(*of):
        pipeline, network = own(*of)
        sampling = pipeline.config.sampling
        later = {n: [[t + 0.3, *f] for t, *f in each] for n, each in sampling["calls"].items()}
        pipeline.register_to_config(sampling={**sampling, "calls": later})
        return pipeline, network

    monkeypatch.setattr(diffusers_folder, "pipeline_of", other)
    with pytest.raises(ValueError, match="must be those of the run to 1e-05 sigma_data, got"):
        write_folder(tmp_path / "made", export, facts, describe_nothing)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kind": "diffusion"}, "is made of a student; a diffusion run needs a solver"),
        ({"network": None}, "needs the network, the sampling and the shards of the run"),
        ({"data": None}, "needs the network, the sampling and the shards of the run"),
    ],
)
def test_what_makes_no_folder_is_said(changed, said, tmp_path):
    export, facts = student("mlp")
    with pytest.raises(ValueError, match=said):
        write_folder(tmp_path / "made", export, replace(facts, **changed), describe_nothing)


def test_a_pipeline_saved_again_is_a_folder_again(guided, tmp_path):
    pipeline, _ = guided
    drawn = pipeline(2, generator=generators(2), output_type="latent").images
    pipeline.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "again")
    again = loaded(tmp_path / "again")
    assert torch.equal(again(2, generator=generators(2), output_type="latent").images, drawn)


def test_the_card_says_what_is_known_and_no_more(tmp_path):
    export, facts = student("unet2d")
    folder = tmp_path / "made"
    write_diffusers(folder, export, facts, "owner/model")
    card = (folder / "README.md").read_text()
    for said in ("license: cc-by-nc-sa-4.0", "CC BY-NC-SA 4.0", "Not measured", "| images | 37 |"):
        assert said in card
    assert Image.open(folder / "samples.png").size > (100, 100)
    scores = {
        "protocol": {"seed": "0", "checkpoint": "some/where/last.ckpt"},
        "fd/1_step": {"value": 1.25, "num_samples": 2000, "seed": 0},
        "fd/2_step": {"value": 0.5, "num_samples": 2000, "seed": 0},
        "kid/1_step": {"value": 0.125, "num_samples": 2000, "seed": 0},
        "nfe/1_step": {"value": 1},
    }
    write_diffusers(folder, export, replace(facts, scores=scores), "owner/model", overwrite=True)
    card = (folder / "README.md").read_text()
    assert "| samples | network calls | fd | KID |" in card
    assert "| 1 step | 1 | 1.25 (2,000) | 0.125 (2,000) |" in card
    assert "| 2 steps | - | 0.5 (2,000) | not measured |" in card
    assert "- checkpoint: last.ckpt" in card
