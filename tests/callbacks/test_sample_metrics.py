# SPDX-License-Identifier: Apache-2.0
"""What `scm test` and a validation make of samples: hooks called by hand, on the digits' shards."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_sets import write_set

from scm_lightning.callbacks import SampleMetrics
from scm_lightning.callbacks.metrics import training_data
from scm_lightning.data import SampleRequest, Shards
from scm_lightning.metrics import DigitFeatures, MovingDigitFeatures, fidelity, reference
from scm_lightning.preparation import Digits, load_digit_splits
from scm_lightning.preparation.moving_digits import moving_clips

NUM_SAMPLES, SIGMA_DATA = 23, 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    Digits(SIGMA_DATA, str(root / "shards")).prepare_data()
    return root


@pytest.fixture
def datamodule(folder):
    made = Digits(SIGMA_DATA, str(folder / "shards"), sample_seed=5)
    made.setup("test")
    return made


def run(datamodule, tmp_path, testing=True):
    return SimpleNamespace(
        testing=testing,
        strategy=SimpleNamespace(broadcast=lambda value: value),
        datamodule=datamodule,
        default_root_dir=str(tmp_path),
        is_global_zero=True,
        ckpt_path="last.ckpt",
        loggers=[],
    )


class Module(SimpleNamespace):
    """A module that keeps what it logs."""

    def __init__(self):
        super().__init__(device=torch.device("cpu"), logged={})

    def log(self, name, value, **options):
        self.logged[name] = value


def orders(datamodule):
    """Training images as samples of two samplers, in two orders, of which one is empty."""
    batch = next(datamodule.reference_batches())
    for indices in (torch.arange(NUM_SAMPLES), torch.arange(0)):
        request = SampleRequest(indices, batch.labels[indices], (1, 8, 8), datamodule.sample_seed)
        drawn = {
            "2_step": SimpleNamespace(x0=batch.x0[indices], nfe=2),
            "blank": SimpleNamespace(x0=0.0 * batch.x0[indices], nfe=7),
        }
        yield drawn, request


def scored(metrics, datamodule, tmp_path):
    trainer, module = run(datamodule, tmp_path), Module()
    metrics.on_test_epoch_start(trainer, module)
    for number, (drawn, request) in enumerate(orders(datamodule)):
        metrics.on_test_batch_end(trainer, module, drawn, request, number)
    metrics.on_test_epoch_end(trainer, module)
    return json.loads((tmp_path / "metrics.json").read_text())


def in_words(text):
    """What was printed, without the breaks of its lines."""
    return " ".join(text.split())


def test_the_floor_and_the_protocol_stand_beside_the_scores(
    datamodule, tmp_path, capsys, monkeypatch
):
    """Copies of training images are at distance 0 from them, held-out ones are not."""
    content = scored(SampleMetrics(DigitFeatures()), datamodule, tmp_path)
    printed = in_words(capsys.readouterr().out)
    protocol = content.pop("protocol")
    assert content["fd/floor"] == {"value": pytest.approx(0.1037, abs=1e-4), "num_samples": 360} | {
        "seed": 5
    }
    # The root of a distance whose square is zero up to float32's rounding of |x|^2, near 100.
    assert content["nearest/2_step"]["value"] == pytest.approx(0.0, abs=5e-2)
    assert content["nearest/floor"]["value"] > 1.0
    assert content["accuracy/2_step"]["value"] == 1.0
    assert content["fd/blank"]["value"] > content["fd/2_step"]["value"]
    assert content["nfe/blank"] == {"value": 7}
    assert "Frechet distance in DigitFeatures" in protocol["distance"]
    assert protocol["samples"] == f"floor 360, 2_step {NUM_SAMPLES}, blank {NUM_SAMPLES}"
    assert protocol["nfe"] == "2_step 2, blank 7"
    assert "1437 images of the split train of scikit-learn" in protocol["reference"]
    assert {"seed": "5", "checkpoint": "last.ckpt"}.items() <= protocol.items()
    assert "held-out real" in printed
    said = json.dumps([content, protocol]) + printed
    assert "FID" not in said.replace("no FID", "")
    assert "fid/" not in said


def test_what_is_not_measured_is_said(datamodule, tmp_path, capsys, monkeypatch):
    """Without torch-fidelity, and with data above the limit of memory."""
    monkeypatch.setattr(fidelity, "is_installed", lambda: False)
    monkeypatch.setattr(reference, "MAX_NEAREST_BYTES", 2**12)
    content = scored(SampleMetrics(DigitFeatures()), datamodule, tmp_path)
    printed = in_words(capsys.readouterr().out)
    for said in (printed, content["protocol"]["left_out"]):
        assert "left out: torch-fidelity is not installed" in said
        assert "nearest is left out" in said
    kinds = {key.partition("/")[0] for key in content}
    assert kinds == {"protocol", "fd", "fd_block", "accuracy", "nfe"}


def test_scores_that_cost_can_be_left_out(datamodule, tmp_path):
    pytest.importorskip("torch_fidelity")
    few = scored(SampleMetrics(DigitFeatures(), False, False), datamodule, tmp_path)
    assert not {"kid/floor", "precision/floor"} & few.keys()
    all_of_them = scored(SampleMetrics(DigitFeatures()), datamodule, tmp_path)
    added = {"kid/floor", "kid_std/floor", "precision/floor", "recall/floor"}
    assert added <= all_of_them.keys() - few.keys()
    assert {key: all_of_them[key] for key in few if key != "protocol"} == {
        key: value for key, value in few.items() if key != "protocol"
    }


@pytest.mark.parametrize(
    ("distance", "name"), [("FD", "val/fd23_2_step"), ("FD-DINOv2", "val/fd_dinov2_23_2_step")]
)
def test_a_validation_says_of_how_many_samples_it_is(datamodule, tmp_path, distance, name):
    """The distance of `scm test`, without its other scores."""
    features = DigitFeatures()
    features.distance_name = distance
    metrics, trainer, module = SampleMetrics(features), run(datamodule, tmp_path, False), Module()
    metrics.on_validation_epoch_start(trainer, module)
    for number, (drawn, request) in enumerate(orders(datamodule)):
        metrics.on_validation_batch_end(trainer, module, drawn, request, number)
    metrics.on_validation_epoch_end(trainer, module)
    assert module.logged.keys() == {name, name.replace("2_step", "blank")}
    content = scored(SampleMetrics(features), datamodule, tmp_path)
    key = distance.lower().replace("-", "_")
    assert module.logged[name] == content[f"{key}/2_step"]["value"]


def test_a_reference_is_kept_with_the_data_of_a_folder(datamodule, tmp_path):
    """Its identity holds checksums and normalization; data from elsewhere have no folder."""
    scored(SampleMetrics(DigitFeatures()), datamodule, tmp_path)
    data = training_data(datamodule)
    assert len(list((data.folder / ".references").glob("*.safetensors"))) >= 1
    assert data.num_bytes == 1437 * 64 * 4
    checksum = datamodule.index.splits["train"].shards[0].sha256
    assert len(checksum) == 64
    assert checksum in data.content
    assert str(datamodule.index.mean[0]) in data.content
    datamodule.root = "https://host/digits"
    assert training_data(datamodule).folder is None


def test_images_in_another_folder_are_compared_with(datamodule, folder, tmp_path):
    """As latents are: the same images give the same scores, but no nearest one."""
    Digits(SIGMA_DATA, str(tmp_path / "same")).prepare_data()
    own = scored(SampleMetrics(DigitFeatures()), datamodule, tmp_path)
    theirs = scored(
        SampleMetrics(DigitFeatures(), reference=str(tmp_path / "same")), datamodule, tmp_path
    )
    assert theirs["fd/2_step"] == own["fd/2_step"]
    assert theirs["fd/floor"] == own["fd/floor"]
    assert "samples are latents" in theirs["protocol"]["left_out"]
    assert {key for key in own.keys() - theirs.keys() if "nearest/" not in key} == set()
    larger = np.zeros((4, 1, 9, 9), np.uint8)
    larger[::2] = 1
    splits = {"train": (larger, np.zeros(4)), "heldout": (larger, np.zeros(4))}
    write_set(tmp_path / "larger", splits, 0, 1.0, 5)
    with pytest.raises(ValueError, match=r"images of their own shape only, \(1, 8, 8\), got"):
        scored(
            SampleMetrics(DigitFeatures(), reference=str(tmp_path / "larger")), datamodule, tmp_path
        )


@pytest.fixture
def clips(tmp_path):
    """Shards of clips of moving digits, few enough for a test."""
    digits, labels = load_digit_splits()["train"]
    splits = {}
    for seed, split in enumerate(("train", "heldout")):
        chosen = slice(400 * seed, 400 * (seed + 1))
        splits[split] = moving_clips(digits[chosen], 1, seed), labels[chosen]
    write_set(tmp_path / "clips", splits, 10, 16.0, 500)
    made = Shards(SIGMA_DATA, str(tmp_path / "clips"))
    made.setup("test")
    return made


def test_clips_have_a_distance_of_frames_and_one_in_time(clips, tmp_path, capsys):
    """Held-out clips as samples, whole and with halves exchanged, by an extractor of images."""
    batch = next(clips.heldout_batches())
    metrics, module = SampleMetrics(MovingDigitFeatures(), kid=False), Module()
    for testing in (False, True):
        trainer = run(clips, tmp_path, testing)
        metrics.setup(trainer, None, "test" if testing else "fit")
        metrics.on_test_epoch_start(trainer, module)
        drawn = {"2_step": SimpleNamespace(x0=batch.x0, nfe=2)}
        drawn["cut"] = SimpleNamespace(x0=batch.x0.roll(4, dims=2), nfe=7)
        request = SampleRequest(torch.arange(400), batch.labels, clips.index.shape, 0)
        metrics.on_validation_batch_end(trainer, module, drawn, request, 0)
        (metrics.on_test_epoch_end if testing else metrics.on_validation_epoch_end)(trainer, module)
    found = json.loads((tmp_path / "metrics.json").read_text())
    values = {name: found[name]["value"] for name in found if "/" in name}
    assert not any(name.startswith("fd") for name in values)
    for kind in ("frame_distance", "temporal_distance"):
        assert values[f"{kind}/2_step"] == pytest.approx(values[f"{kind}/floor"], rel=1e-6)
        assert values[f"{kind}_block/2_step"] == pytest.approx(values[f"{kind}/floor"], rel=1e-6)
        assert module.logged[f"val/{kind}_400_cut"] == pytest.approx(values[f"{kind}/cut"])
    assert values["frame_distance/cut"] == pytest.approx(values["frame_distance/floor"], rel=1e-3)
    assert values["temporal_distance/cut"] > 2 * values["temporal_distance/floor"]
    assert values["accuracy/cut"] == values["accuracy/floor"] > 0.8
    assert "MovingDigitFeatures" in found["protocol"]["distance"]
    said = in_words(capsys.readouterr().out)
    assert "Frechet distance of frames and of changes between them in MovingDigitFeatures" in said
    assert "frames, 400 temporal, 400" in said
    assert "frames, N and temporal, N: over N samples" in said
