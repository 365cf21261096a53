# SPDX-License-Identifier: Apache-2.0
"""Kinds of files of data and of runs, and how the package reads them: shards, tables, settings."""

import json
import tempfile
from pathlib import Path

import numpy as np
import yaml
from fuzz_engine import Kind
from fuzz_mutations import either, mutate_json, mutate_tar, mutate_text
from painted import PaintedImages, recipe
from small_sets import write_set

from scm_lightning.callbacks import RunLog
from scm_lightning.cli import ablation
from scm_lightning.cli.ablation_report import CURVES_FILE, collect
from scm_lightning.cli.renamed import renamed
from scm_lightning.cli.resume import differences
from scm_lightning.cli.strict_yaml import install
from scm_lightning.data import Reading, ShardIndex, Shards
from scm_lightning.data.samples import SplitSamples
from scm_lightning.preparation.folder import ACCOUNT_FILE, begun, read_account

SIGMA_DATA = 0.7
SHAPE = (1, 2, 3)
WORK = ".preparation"


def read_shards(root: Path, verify: str = "never") -> str:
    """All of both splits, mapped and as a stream."""
    seen = []
    for mapped in (True, False):
        reading = Reading(mapped, verify=verify)
        data = Shards(SIGMA_DATA, str(root), 5, reading=reading)
        data.setup("fit")
        seen += [batch.x0.sum() for batch in data.reference_batches()]
        seen += [
            batch.x0.sum() for batch, _ in zip(data.train_dataloader(), range(9), strict=False)
        ]
    return str([float(each) for each in seen])


def read_a_tar(file: Path) -> str:
    """One shard alone, whatever its size."""
    index = ShardIndex.read(file.parent)
    train = index.splits["train"]
    chosen = [shard.name for shard in train.shards].index(file.name)
    samples = SplitSamples(str(file.parent), index, "train", verify=False).read(chosen)
    return str([(float(each.array.sum()), each.label) for each in samples])


def content_below(folder: Path) -> dict[str, bytes]:
    """Every file, by path."""
    files = sorted(each for each in folder.rglob("*") if each.is_file())
    return {str(each.relative_to(folder)): each.read_bytes() for each in files}


def log_on(file: Path) -> None:
    """Go on with the log of a run; where it is damaged it is set aside."""
    log = RunLog(str(file.parent))
    log.start_from(2)
    log.log_metrics({"train/loss": 0.5, "new": 1.0}, step=2)
    log.save()
    assert file.read_text().endswith("\n")


def shards() -> dict[str, bytes]:
    """A folder of shards."""
    random = np.random.default_rng(0)
    labels = np.arange(40) % 3
    arrays = random.normal(size=(40, *SHAPE)).astype(np.float32)
    splits = {"train": (arrays, labels), "heldout": (arrays[:6], labels[:6])}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "shards"
        write_set(root, splits, 3, 1.0, 20)
        return content_below(root)


def shard_kinds() -> list[Kind]:
    """The index and the tar files."""
    files = shards()
    tars = {name: each for name, each in files.items() if name.startswith("train")}
    index = {"shards.json": files["shards.json"]}
    return [
        Kind(
            *("shards.json", index, lambda file: read_shards(file.parent), mutate_json, 1500),
            beside=files,
        ),
        Kind("shard", tars, read_a_tar, either(mutate_tar), 2500, beside=files),
        Kind(
            *("shard, its size listed", tars, lambda file: read_shards(file.parent)),
            *(_of_equal_size(mutate_tar), 500),
            beside=files,
        ),
        Kind(
            *("shard, its checksum listed", tars, lambda file: read_shards(file.parent, "once")),
            *(_of_equal_size(mutate_tar), 500),
            beside=files,
            is_covered=True,
        ),
    ]


def _of_equal_size(*kinds):
    mutate = either(*kinds)

    def fitting(content, random):
        return mutate(content, random)[: len(content)].ljust(len(content), b"\0")

    return fitting


def settings() -> dict:
    """A configuration as a run keeps it."""
    return {
        "seed_everything": 3,
        "trainer": {"max_steps": 10, "callbacks": [{"class_path": "a.B", "init_args": {"x": 1.5}}]},
        "model": {"class_path": "a.C", "init_args": {"sigma_data": 0.5, "names": ["x", "y"]}},
        "ckpt_path": None,
    }


def read_ablation(folder: Path) -> str:
    """The outcome of a run, whether it was finished, and its curves."""
    base = folder / "base.yaml"
    planned = ablation.Ablation(
        "t", "q", str(base), {"a": ablation.Overrides()}, ["fd/1_step"], str(folder), seeds=[0]
    )
    runs = ablation.trials(planned)
    for trial in runs:
        trial.run.is_recorded(finished=True), trial.run.is_recorded(finished=False)
    return str(collect(planned, runs, {}))


def read_work(folder: Path) -> None:
    """What a preparation that was interrupted has noted, and what a finished one has."""
    planned = recipe(PaintedImages(40)).plan()
    if (folder / "shards.json").is_file():
        read_account(folder, planned)
        return
    with begun(folder, planned) as place:
        for each in planned.shards:
            place.record_of(each)


def preparations() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Files of a preparation that is half done, and of a finished one."""
    import shutil

    from scm_lightning.preparation import folder as preparation_folder
    from scm_lightning.preparation.engine import prepare

    kept: dict[str, bytes] = {}

    def remove_work(place: Path) -> None:
        kept.update(content_below(place))
        shutil.rmtree(place / preparation_folder.WORK_FOLDER)

    with tempfile.TemporaryDirectory() as place:
        original = preparation_folder.remove_work
        preparation_folder.remove_work = remove_work
        try:
            prepare(recipe(PaintedImages(40)), Path(place) / "out")
        finally:
            preparation_folder.remove_work = original
        return kept, content_below(Path(place) / "out")


def kinds() -> list[Kind]:
    """All of them."""
    install(renamed)
    config = yaml.safe_dump(settings()).encode()
    scores = {"fd/1_step": {"value": 3.5, "samples": 10}, "kid/1_step": {"value": 1.0}}
    curves = {"t": [0.1, 0.2], "tan_t": [1.0, 2.0], "gradient_noise": [1.0, 3.0]}
    run = "students/a/seed_0"
    made_from = json.dumps({"config": settings(), "options": {"x": 1}, "stages": ["fit"]}).encode()
    outcome = {
        f"{run}/metrics.json": json.dumps(scores).encode(),
        f"{run}/{CURVES_FILE}": json.dumps(curves).encode(),
        f"{run}/made_from.json": made_from,
    }
    log = b"step,epoch,train/loss,val/fd\n0,0,1.5,\n1,0,1.25,\n2,,,3.5\n"
    half, whole = preparations()
    half = {name: each for name, each in half.items() if name != "shards.json"}
    notes = {name: each for name, each in half.items() if name.endswith(".json")}
    account = {ACCOUNT_FILE: whole[ACCOUNT_FILE]}
    return [
        *shard_kinds(),
        Kind(
            *("config.yaml", {"config.yaml": config}),
            *(lambda file: differences(file, config.decode()), mutate_text, 1300),
        ),
        Kind(
            *("ablation", outcome, lambda file: read_ablation(_above(file, run)), mutate_json, 700),
            beside={"base.yaml": config},
        ),
        Kind(
            *("base.yaml", {"base.yaml": config}, lambda file: read_ablation(file.parent)),
            *(mutate_text, 300),
            beside=outcome,
        ),
        Kind(
            *("metrics.csv", {"metrics.csv": log}),
            *(log_on, mutate_text, 300),
        ),
        Kind(
            "preparation", notes, lambda file: read_work(_above(file, WORK)), mutate_json, 300, half
        ),
        Kind("account", account, lambda file: read_work(file.parent), mutate_json, 200, whole),
    ]


def _above(file: Path, folder: str) -> Path:
    """The folder that a file's path goes on from."""
    return Path(str(file).partition(f"/{folder}/")[0])
