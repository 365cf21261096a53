# SPDX-License-Identifier: Apache-2.0
"""What the callbacks log, write and draw."""

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gaussian import PATH
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from tiny import loader, trainer

from scm_lightning import ConsistencyModule
from scm_lightning.callbacks import Checkpoints, Diagnostics, SampleGrids
from scm_lightning.callbacks.diagnostics import TIME_EDGES
from scm_lightning.callbacks.report import metrics_content, score_table
from scm_lightning.callbacks.run import shards_of
from scm_lightning.callbacks.run_log import RunLog
from scm_lightning.core import TangentWarmup
from scm_lightning.data.pictures import captioned_rows, image_grid
from scm_lightning.metrics import FeatureExtractor, Features, Score
from scm_lightning.modules import FlatCosine
from scm_lightning.networks import MLP
from scm_lightning.objectives import Consistency, PairVelocity


class Log:
    def __init__(self):
        self.lines = []

    def log_metrics(self, values, step):
        self.lines.append((step, values))


def test_tangent_norms_are_averaged_per_time_bucket():
    """Two batches in four buckets; a time on an edge belongs to the bucket above it."""
    diagnostics, log = Diagnostics(every_n_steps=2), Log()
    run = SimpleNamespace(
        loggers=[log],
        strategy=SimpleNamespace(reduce=lambda x, reduce_op: x),
        global_step=0,
        log_every_n_steps=50,
    )
    outputs = [
        {"t": torch.tensor([0.05, 0.1, 1.2]), "tangent_norm": torch.tensor([1.0, 2.0, 3.0])},
        {"t": torch.tensor([0.3, 1.5, 1.57]), "tangent_norm": torch.tensor([4.0, 6.0, 8.0])},
    ]
    for step, out in enumerate(outputs, start=1):
        run.global_step = step
        diagnostics.on_train_batch_end(run, None, out, None, 0)
    ((step, values),) = log.lines
    assert step == 1  # of the second step, as Lightning counts rows
    assert values == {
        "tangent_norm/0.00-0.10": 1.0,
        "tangent_norm/0.10-0.50": 3.0,
        "tangent_norm/1.10-1.50": 3.0,
        "tangent_norm/1.50-1.57": 7.0,
    }
    assert TIME_EDGES[-1] == math.pi / 2


def test_every_step_is_one_row_whatever_is_accumulated(tmp_path):
    """Three batches to a step, gone on with after the second; rate and r are those of the step."""
    module = ConsistencyModule(
        MLP((3,), 16, 1, 8),
        path=PATH,
        objective=Consistency(warmup=TangentWarmup(0.5)),
        lr_schedule=lambda optimizer: FlatCosine(optimizer, ramp_steps=0.5),
    )
    checkpoint = tmp_path / "last.ckpt"
    for end, start in ((2, None), (8, checkpoint)):
        fit = trainer(
            end,
            logger=RunLog(str(tmp_path)),
            log_every_n_steps=1,
            accumulate_grad_batches=3,
            enable_checkpointing=True,
            callbacks=[Diagnostics(every_n_steps=2), Checkpoints(str(tmp_path / "c"), 4)],
        )
        fit.fit(module, loader(5), ckpt_path=start, weights_only=True)
        fit.save_checkpoint(checkpoint)
    with (tmp_path / "metrics.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["step"] for row in rows] == [str(step) for step in range(8)]
    assert [float(row["r"]) for row in rows] == [0, 1, 0.5, 0.75, 1, 1, 1, 1]  # of 2, then of 8
    assert float(rows[3]["lr"]) == 1e-4 > float(rows[7]["lr"])
    by_time = [any(row[key] for key in row if key.startswith("loss/")) for row in rows]
    assert by_time == [False, True] * 4


def test_a_run_logs_and_saves_its_last_step(tmp_path):
    """Seven steps with a checkpoint every three: the last file holds step seven."""
    module = ConsistencyModule(MLP((3,), 16, 1, 8), PairVelocity(), path=PATH)
    fit = trainer(
        7,
        logger=CSVLogger(tmp_path, name="", version=""),
        log_every_n_steps=1,
        enable_checkpointing=True,
        callbacks=[Diagnostics(every_n_steps=3), Checkpoints(str(tmp_path / "c"), 3)],
    )
    fit.fit(module, loader(50))
    assert sorted(file.name for file in (tmp_path / "c").glob("*.ckpt")) == [
        "0000003.ckpt",
        "0000006.ckpt",
        "last.ckpt",
    ]
    last = torch.load(tmp_path / "c" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 7
    assert int(last["state_dict"]["ema.num_steps"]) == 7
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "grad_norm", "tangent_norm/0.50-1.10"} <= set(header)


def test_grid_puts_images_in_order_without_blurring():
    """Three images of one pixel in two columns: 48 screen pixels each, then a gap of 2."""
    images = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1)
    page = np.array(image_grid(images, columns=2))
    assert page.shape == (100, 100, 3)
    assert page[0, 0].tolist() == [0, 0, 0]
    assert page[47, 97].tolist() == [128, 128, 128]
    assert page[50, 0].tolist() == [255, 255, 255]
    assert set(page[:48, :48].ravel()) == {0}


def test_colour_images_keep_their_channels():
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1.0
    assert np.array(image_grid(red, columns=1))[5, 5].tolist() == [255, 0, 0]


def test_rows_stand_under_each_other_with_captions():
    page = captioned_rows({"dark": torch.zeros(2, 1, 8, 8), "bright": torch.ones(2, 1, 8, 8)})
    pixels = np.array(page)
    assert isinstance(page, Image.Image)
    assert pixels[10, -10].tolist() == [0, 0, 0]
    assert pixels[-10, -10].tolist() == [255, 255, 255]
    assert (pixels[:50, :200] < 128).any()  # the caption


class Pixels(FeatureExtractor):
    """Pixels as features."""

    num_features = 3
    description = "pixels"

    def forward(self, images):
        return Features(images.flatten(1), None)


def test_report_names_values_counts_and_seed():
    scores = {
        "floor": {"fd": Score(0.1, 360), "fd_block": Score(0.1, 360)},
        "2_step": {
            "fd": Score(0.05, 2000),
            "fd_block": Score(0.11, 360),
            "kid": Score(0.00125, 2000),
        },
    }
    content = metrics_content({"distance": "pixels"}, scores, {"2_step": 2}, seed=3)
    assert content["fd/2_step"] == {"value": 0.05, "num_samples": 2000, "seed": 3}
    assert content["fd/floor"]["num_samples"] == 360
    assert content["nfe/2_step"] == {"value": 2}
    table = score_table(scores, {"2_step": 2}, Pixels(), "caption")
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns["FD, 2,000"] == ["-", "0.050"]  # the floor has no 2,000 images
    assert columns["FD, 360"] == ["0.100", "0.110"]
    assert columns["KID"] == ["-", "1.250"]  # in thousandths
    assert table.title.startswith("Frechet distance in pixels; no FID")
    assert "acc." not in columns


def test_fewer_samples_than_held_out_images_have_a_column():
    """Of their own; with as many, one column is enough."""
    scores = {
        "floor": {"fd": Score(0.1, 360), "fd_block": Score(0.1, 360)},
        "1_step": {"fd": Score(0.3, 50)},
    }
    table = score_table(scores, {}, Pixels(), "caption")
    columns = {column.header: list(column.cells) for column in table.columns[2:]}
    assert columns == {"FD, 360": ["0.100", "-"], "FD, 50": ["-", "0.300"]}
    scores["1_step"] = {"fd": Score(0.3, 360), "fd_block": Score(0.3, 360)}
    table = score_table(scores, {}, Pixels(), "caption")
    assert [column.header for column in table.columns] == ["samples", "NFE", "FD, 360"]


def test_a_table_of_fid_says_so():
    """Only Inception's extractor has the name; Reference refuses it to others."""
    extractor = Pixels()
    extractor.distance_name = "FID"
    scores = {"1_step": {"fid": Score(2.5, 2000), "inception_score": Score(9.0, 2000)}}
    table = score_table(scores, {}, extractor, "caption")
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns["FID, 2,000"] == ["2.500"]
    assert columns["IS"] == ["9.000"]
    assert table.title.startswith("FID in pixels")
    assert "no FID" not in table.title


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="every_n_steps must be at least 1"):
        Diagnostics(0)
    with pytest.raises(ValueError, match="every_n_train_steps of checkpoints"):
        Checkpoints(every_n_train_steps=0)
    with pytest.raises(ValueError, match="columns must be at least 1"):
        SampleGrids(0)
    with pytest.raises(ValueError, match="need the data of a ShardDataModule, got NoneType"):
        shards_of(SimpleNamespace(datamodule=None))
