# SPDX-License-Identifier: Apache-2.0
"""The overlay `sweep` on short runs of the digits: fit, then `scm test`, as they are typed."""

import json
from pathlib import Path

import pytest
from PIL import Image

from scm_lightning.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
PROFILES = (
    "["
    + ", ".join(
        f"{{class_path: scm_lightning.modules.PowerFunction, init_args: {{sigma_rel: {width}}}}}"
        for width in (0.05, 0.15)
    )
    + "]"
)


def words(stage, name, folder, overlays, options):
    """Arguments of a run below a folder."""
    fixed = {
        "trainer.default_root_dir": folder / name,
        "data.init_args.root": folder / "shards",
        "data.init_args.num_val_samples": 21,
        "data.init_args.num_test_samples": 60,
        "trainer.max_steps": 3,
        "trainer.val_check_interval": 3,
        "trainer.enable_model_summary": "false",
        "trainer.enable_progress_bar": "false",
        **options,
    }
    configs = [f"{name}.yaml", *(f"overlays/{each}.yaml" for each in overlays)]
    return [
        stage,
        *(f"--config={CONFIGS / config}" for config in configs),
        *(f"--{key}={value}" for key, value in fixed.items()),
    ]


def swept(name, folder, options):
    """A run of three steps, tested with the overlay; its folder."""
    ema = {"model.init_args.ema": PROFILES}
    main(words("fit", name, folder, [], ema))
    main(words("test", name, folder, ["sweep"], {**ema, **options}))
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


def test_a_consistency_model_is_swept(folder, capsys):
    """A row of every file for each combination, a picture, and the best row's options."""
    options = {"model.init_args.sampling.sweep.t_mid": "[0.6, 1.1]"}
    run = swept("digits_sct_scratch", folder, options)
    printed = capsys.readouterr().out
    content = json.loads((run / "sweep.json").read_text())
    scores = json.loads((run / "metrics.json").read_text())
    times = [None, 0.6, 1.1, 0.6, 1.1]
    found = [(row["num_steps"], row["t_mid"], row["ema"]) for row in content["rows"].values()]
    steps = zip((1, 2, 2, 4, 4), times, strict=True)
    assert found == [(n, t_mid, ema) for n, t_mid in steps for ema in ("0.05", "0.15")]
    for row, entry in content["rows"].items():
        assert scores[f"fd/{row}"]["value"] == entry["scores"]["fd"]["value"]
        assert scores[f"fd/{row}"]["num_samples"] == 60
    values = {row: entry["scores"]["fd"]["value"] for row, entry in content["rows"].items()}
    assert len(set(values.values())) == len(values)
    assert values["2_step t_mid=1.1 ema=0.05"] == scores["fd/2_step"]["value"]
    assert content["best"] == min(values, key=values.get)
    assert f"best: {content['best']}" in printed
    for key, value in content["options"].items():
        assert f"--model.init_args.sampling.{key}={json.dumps(value).replace(' ', '')}" in printed
    with Image.open(run / "sweep.png") as picture:
        picture.verify()


def test_a_mean_flow_model_is_swept_without_times(folder):
    run = swept("digits_mean_flow", folder, {"model.init_args.sampling.sweep.t_mid": "[]"})
    rows = json.loads((run / "sweep.json").read_text())["rows"]
    assert list(rows) == [f"{n}_step ema={width}" for n in (1, 2, 4) for width in (0.05, 0.15)]


def test_a_sweep_that_the_model_has_not_is_one_line(folder, capsys):
    options = {"model.init_args.sampling.sweep.guidance": "[1.5]"}
    with pytest.raises(SystemExit) as exit_:
        main(words("test", "digits_sct_scratch", folder, ["sweep"], options))
    assert exit_.value.code == 2
    assert "guidance of a sweep needs a guided network, got 1.5" in capsys.readouterr().err
