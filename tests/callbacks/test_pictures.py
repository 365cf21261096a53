# SPDX-License-Identifier: Apache-2.0
"""Pictures of any data; and samples that are written first, whatever becomes of their pictures."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_sets import write_set

from scm_lightning import ConsistencyModule
from scm_lightning.callbacks import SampleGrids, SampleMetrics
from scm_lightning.callbacks import grids as grids_module
from scm_lightning.callbacks.grids import heldout_of
from scm_lightning.callbacks.sweep import report_sweep
from scm_lightning.data import SampleRequest, Shards
from scm_lightning.data.pictures import captioned_rows, image_grid, moving_rows
from scm_lightning.metrics import DigitFeatures, Score
from scm_lightning.networks import MLP
from scm_lightning.sampling import FewStepSampling, SamplerSweep
from scm_lightning.whole_files import write_picture

SIGMA_DATA = 0.7
SHAPES = {
    "vector": (5,),
    "sequence": (2, 6),
    "gray": (1, 4, 3),
    "two": (2, 4, 3),
    "eight": (8, 4, 3),
    "video": (3, 2, 4, 3),
}
REQUEST = SampleRequest(torch.arange(7), None, (), 11)


def data(folder, shape, labels=(0, 1, 2), num=24, num_classes=3, dtype=np.float32):
    """Shards whose held-out samples have the labels in turn; batches of five."""
    rng = np.random.default_rng(0)
    arrays = (
        rng.integers(0, 256, (num, *shape)) if dtype == np.uint8 else rng.normal(size=(num, *shape))
    )
    split = arrays.astype(dtype), np.resize(labels, num)
    white = 255.0 if dtype == np.uint8 else 1.0
    splits = {"train": split, "heldout": split}
    write_set(folder / "shards", splits, num_classes, white, 10)
    made = Shards(SIGMA_DATA, str(folder / "shards"), sample_batch_size=5)
    made.setup("predict")
    return made


def run(datamodule, folder, **options):
    return SimpleNamespace(
        datamodule=datamodule,
        default_root_dir=str(folder),
        is_global_zero=True,
        sanity_checking=False,
        global_step=3,
        state=SimpleNamespace(fn="fit"),
        loggers=[],
        **options,
    )


def predict(trainer, shape, num=7, labels=None):
    """What `scm predict` calls, with noise for samples; the file of samples."""
    grids = SampleGrids(columns=4)
    grids.on_predict_start(trainer, None)
    for indices in torch.arange(num).split(3):
        own = None if labels is None else labels[indices]
        noise = SIGMA_DATA * torch.randn(len(indices), *shape)
        outputs = {"1_step": SimpleNamespace(x0=noise, nfe=1)}
        request = SampleRequest(indices, own, shape, 11)
        grids.on_predict_batch_end(trainer, None, outputs, request, 0)
    grids.on_predict_end(trainer, None)
    return np.load(f"{trainer.default_root_dir}/samples/samples.npz")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_data_of_any_shape_have_pictures(shape, dtype, tmp_path, capsys):
    trainer = run(data(tmp_path, shape, dtype=dtype), tmp_path)
    samples = predict(trainer, shape, labels=torch.arange(7) % 3)
    assert samples["1_step"].shape == (7, *shape)
    assert samples["labels"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert int(samples["seed"]) == 11
    outputs = {"1_step": SimpleNamespace(x0=torch.randn(7, *shape))}
    SampleGrids().on_validation_batch_end(trainer, None, outputs, REQUEST, 0)
    found = {file.name for file in (tmp_path / "samples").iterdir()}
    moving = {"comparison.gif", "step_0000003.gif"} if len(shape) == 4 else set()
    still = {"1_step.png", "comparison.png", "step_0000003.png"}
    assert found == {"samples.npz", *still, *moving}
    said = capsys.readouterr()
    assert "look at comparison.png first" in said.out
    assert not said.err


def test_classes_that_the_first_batch_has_not_are_looked_for(tmp_path):
    """Class 7 comes in the third batch; class 1 is in none, and stays white."""
    datamodule = data(tmp_path, (1, 4, 3), [0] * 12 + [7, 3], 28, 9)
    heldout = torch.cat([batch.x0 for batch in datamodule.heldout_batches()])
    found = heldout_of(datamodule, torch.tensor([7, 0, 1, 0, 7, 7, 3]))
    torch.testing.assert_close(found[[0, 1, 3, 4, 5, 6]], heldout[[12, 0, 1, 26, 12, 13]])
    assert found[2].isnan().all()
    white = np.array(image_grid(datamodule.to_pictures(found[2:3]), 1))
    assert (white == 255).all()
    predict(run(datamodule, tmp_path), (1, 4, 3), 9, torch.arange(9))
    assert (tmp_path / "samples" / "comparison.png").is_file()


def test_data_without_labels_stand_beside_as_many_samples(tmp_path):
    datamodule = data(tmp_path, (1, 4, 3), [0], num_classes=0)
    heldout = torch.cat([batch.x0 for batch in datamodule.heldout_batches()])
    found = heldout_of(datamodule, torch.zeros(7, dtype=torch.int64))
    torch.testing.assert_close(found, heldout[:7])
    assert predict(run(datamodule, tmp_path), (1, 4, 3))["labels"].shape == (0,)


def test_pictures_that_fail_lose_no_samples(tmp_path, capsys, monkeypatch):
    """A mistake while drawing, and then a run whose data module is another's."""
    datamodule = data(tmp_path, (1, 4, 3))
    monkeypatch.setattr(datamodule, "to_images", lambda x0: 1 / 0)
    assert predict(run(datamodule, tmp_path), (1, 4, 3))["1_step"].shape == (7, 1, 4, 3)
    outputs = {"1_step": SimpleNamespace(x0=torch.randn(7, 1, 4, 3))}
    SampleGrids().on_validation_batch_end(run(datamodule, tmp_path), None, outputs, REQUEST, 0)
    said = capsys.readouterr()
    lines = said.err.splitlines()
    pictures = ["1_step", "comparison", "step_0000003"]
    for name, line in zip(pictures, lines, strict=True):
        assert line == (
            f"scm: {tmp_path}/samples/{name}.png could not be drawn: ZeroDivisionError: division "
            "by zero; everything else continues without it"
        )
    assert said.out.endswith("samples are in " + f"{tmp_path}/samples\n")
    assert [file.name for file in (tmp_path / "samples").iterdir()] == ["samples.npz"]
    predict(run(object(), tmp_path / "other"), (1, 4, 3))
    assert "could not be drawn: ValueError: pictures and scores need" in capsys.readouterr().err


def test_prompts_stand_under_the_samples_and_are_kept_with_them(tmp_path, monkeypatch):
    """In the order of the samples, whatever the order of the batches; a column for each prompt."""
    datamodule = data(tmp_path, (1, 4, 3), labels=(0,), num_classes=0)
    datamodule.prompts = "prompts.txt"
    drawn = []
    for name in ("image_grid", "captioned_rows"):
        monkeypatch.setattr(grids_module, name, lambda *given: drawn.append(given[1:]) or page)
    page, grids = Image.new("RGB", (2, 2)), SampleGrids(columns=4)
    trainer = run(datamodule, tmp_path)
    grids.on_predict_start(trainer, None)
    for own in ([3, 4, 5], [0, 1, 2], []):
        outputs = {"1_step": SimpleNamespace(x0=torch.randn(len(own), 1, 4, 3), nfe=1)}
        prompts = [("a cat", "a dog", "größe")[number % 3] for number in own]
        request = SampleRequest(torch.tensor(own), None, (1, 4, 3), 11, prompts=prompts)
        grids.on_predict_batch_end(trainer, None, outputs, request, 0)
    grids.on_predict_end(trainer, None)
    kept = np.load(tmp_path / "samples" / "samples.npz", allow_pickle=False)["prompts"].tolist()
    assert kept == ["a cat", "a dog", "größe"] * 2
    assert drawn == [(3, kept), (kept[:4],)]


def test_texts_are_wrapped_to_the_width_of_their_image():
    """Dark letters stand below each image and nowhere else; a longer text has more lines."""
    images = torch.ones(3, 1, 4, 3)
    texts = ["", "a cat", "a very large number of words that will not stand in one line of text"]
    page = 255 - np.array(image_grid(images, 3, texts)).min(axis=2).astype(int)
    width = page.shape[1] // 3
    assert page[:96].max() == 0
    ink = [page[96:, n * width : (n + 1) * width] for n in range(3)]
    assert ink[0].max() == 0
    rows = [np.flatnonzero(part.max(axis=1)) for part in ink]
    assert rows[1].size < 13 < 3 * 13 < rows[2][-1]
    assert all(part[:, -2:].max() == 0 for part in ink)
    long = np.array(image_grid(images[:1], 1, ["x" * 1000]))
    assert len(long) <= 98 + 5 * 13 + 4


def test_a_picture_that_cannot_be_written_is_a_line(tmp_path, capsys):
    (tmp_path / "picture.png").mkdir()
    drawn = write_picture(tmp_path / "picture.png", lambda: Image.new("RGB", (2, 2)))
    assert not drawn
    assert "picture.png could not be drawn: Is a directory" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_samples_that_cannot_be_written_are_an_error(tmp_path, monkeypatch):
    """The older ones stay."""
    trainer = run(data(tmp_path, (1, 4, 3)), tmp_path)
    before = predict(trainer, (1, 4, 3), 5)["1_step"]
    save = np.savez

    def fill(file, **arrays):
        save(file, seed=arrays["seed"])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fill)
    line = r"samples.npz could not be written: No space left on device, where [\d,]+ bytes"
    with pytest.raises(OSError, match=line):
        predict(trainer, (1, 4, 3), 7)
    samples = np.load(tmp_path / "samples" / "samples.npz")
    np.testing.assert_array_equal(samples["1_step"], before)
    assert not list((tmp_path / "samples").glob("*.part"))


def test_a_plot_that_fails_leaves_the_numbers(tmp_path, capsys):
    """A folder is in the place of the picture."""
    sampling = FewStepSampling(sweep=SamplerSweep((1, 2)))
    module = ConsistencyModule(MLP((3,), 16, 1, 8), sampling=sampling)
    scores = {row: {"fd": Score(0.5, 20)} for row in module.sweep_points()}
    (tmp_path / "sweep.png").mkdir()
    lines = report_sweep(tmp_path, module, scores, {"1_step": 1, "2_step": 2}, "fd")
    assert lines[-1] == f"sweep written to {tmp_path / 'sweep.json'}"
    assert json.loads((tmp_path / "sweep.json").read_text())["best"] == "1_step"
    assert "sweep.png could not be drawn: Is a directory" in capsys.readouterr().err


def test_scores_of_data_that_are_no_images_are_left_out_in_a_line(tmp_path, capsys):
    for name, shape in SHAPES.items():
        metrics = SampleMetrics(DigitFeatures())
        trainer = run(data(tmp_path / name, shape), tmp_path)
        metrics.setup(trainer, None, "fit")
        said = capsys.readouterr().err
        assert (metrics.features is None) == (name not in ("gray", "video"))
        if metrics.features is None:
            assert said.startswith("scm: FD and other scores are left out: DigitFeatures looks at")
            assert f"the data have shape {shape}" in said
            assert said.count("\n") == 1
        else:
            assert not said


def test_a_test_that_measures_nothing_is_refused(tmp_path, capsys):
    """Before a sample is drawn; pictures of a validation are drawn all the same."""
    trainer = run(data(tmp_path, (1, 4, 3)), tmp_path)
    with pytest.raises(ValueError, match=r"measures nothing .*; set --metrics.features \w+"):
        SampleMetrics().setup(trainer, None, "test")
    SampleMetrics().setup(trainer, None, "fit")
    assert not capsys.readouterr().err
    SampleMetrics().setup(trainer, None, "validate")
    assert "no distance is measured" in capsys.readouterr().out


def test_channels_are_below_each_other_and_frames_side_by_side():
    """A video of two channels of 2 x 1 pixels in three frames: all six in their places."""
    values = torch.tensor([[0, 1, 2], [3, 4, 5]]) / 5
    video = values[None, :, :, None, None].expand(1, 2, 3, 2, 1)
    page = np.array(image_grid(video, 1))
    assert page.shape == (2 * 50, 3 * 26, 3)  # a scale of 24, and a gap
    shown = page[25::50, 12::26]
    assert shown[..., 0].tolist() == [[0, 51, 102], [153, 204, 255]]
    assert (page[48:50] == 255).all()


def test_a_row_holds_whole_clips_and_a_caption_three_rows():
    """Five clips of eight frames with two in a row of twenty frames; of nine, six are shown."""
    clips = torch.rand(9, 1, 8, 48, 48)
    assert image_grid(clips[:5], 20).size == (2 * 8 * 50, 3 * 50)
    assert image_grid(clips[:5], 3).size == (8 * 50, 5 * 50)
    assert captioned_rows({"a": clips, "b": clips[:1]}).size == (210 + 2 * 8 * 50, 4 * 50)


def test_clips_move_in_an_animated_picture(tmp_path):
    """Its frames are those of the clips, one tile for each, in order and for ever."""
    clips = torch.arange(6).reshape(2, 1, 3, 1, 1).expand(2, 1, 3, 48, 48) / 5
    assert write_picture(tmp_path / "a.gif", lambda: moving_rows({"one": clips, "two": clips}))
    with Image.open(tmp_path / "a.gif") as picture:
        assert (picture.n_frames, picture.info["loop"]) == (3, 0)
        for frame in range(3):
            picture.seek(frame)
            page = np.array(picture.convert("L"))
            assert page.shape == (100, 210 + 100)
            assert page[24::50, 210 + 24 :: 50].tolist() == 2 * [[51 * frame, 51 * (frame + 3)]]


def test_vectors_are_drawn_out_and_rows_are_high_enough_for_a_caption():
    vector = torch.tensor([[0.0, 0.5, 1.0]])
    page = np.array(image_grid(vector, 1))
    assert page.shape == (50, 50, 3)
    assert page[8:48:16, 24, 0].tolist() == [0, 128, 255]
    assert captioned_rows({"one": torch.rand(4, 2, 100)}).size == (210 + 4 * 102, 50)


def test_numbers_that_are_no_images_are_shown_about_their_mean(tmp_path):
    datamodule = data(tmp_path, (2, 4, 3))
    x0 = SIGMA_DATA * torch.tensor([-3.0, -1.0, 0.0, 1.0]).reshape(4, 1, 1, 1).expand(4, 2, 4, 3)
    assert datamodule.to_pictures(x0)[:, 1, 2, 2].tolist() == [0.0, 0.25, 0.5, 0.75]
