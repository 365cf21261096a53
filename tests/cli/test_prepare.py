# SPDX-License-Identifier: Apache-2.0
"""`scm prepare`: what a user types, sees and gets."""

import inspect
import re

import numpy as np
import pytest
from PIL import Image

from scm_lightning.cli import main
from scm_lightning.cli.prepare import prepare
from scm_lightning.cli.prepare_report import MAX_COLUMNS
from scm_lightning.data import ShardIndex, Shards

COLORS = {"blue": (20, 40, 200), "red": (220, 30, 10)}


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures of 20 x 12 pixels in two folders, and a text."""
    for name, color in COLORS.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(6):
            file = tmp_path / "pictures" / name / f"{number}.png"
            Image.new("RGB", (20, 12), (*color[:2], color[2] + number)).save(file)
    (tmp_path / "pictures" / "notes.txt").write_text("not a picture")
    return tmp_path / "pictures"


def words(pictures, *more):
    out = str(pictures.parent / "out")
    fixed = ["--source", str(pictures), "--out", out, "--size", "8", "--heldout", "4"]
    return ["prepare", *fixed, "--workers", "0", *more]


def refused(capsys, *args):
    """The one line of standard error with which the command line refuses the arguments."""
    with pytest.raises(SystemExit) as caught:
        main([*args])
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("scm: error: ")
    return lines[0]


def test_a_folder_of_pictures_becomes_data_to_train_on(pictures, tmp_path, capsys):
    """Its classes are the folders; normalised, the training images have deviation sigma_data."""
    main(words(pictures))
    shown = capsys.readouterr().out
    for part in ("12 images", "8 images in 1 shard", "blue 6, red 6", "3 x 8 x 8 uint8", "none"):
        assert part in shown
    data = Shards(sigma_data=0.7, root=str(tmp_path / "out"), batch_size=3)
    data.prepare_data()
    data.setup("fit")
    (batch,) = data.reference_batches()
    assert batch.x0.shape == (8, 3, 8, 8)
    assert sorted(batch.labels.tolist()) == [0] * 4 + [1] * 4
    np.testing.assert_allclose(batch.x0.std(dim=(0, 2, 3), correction=0), 0.7, rtol=1e-5)
    (heldout,) = data.heldout_batches()
    assert heldout.labels.tolist() == [0, 1, 0, 1]


def test_the_sheet_shows_every_class_as_the_network_sees_it(pictures, tmp_path):
    main(words(pictures, "--normalize", "range"))
    sheet = np.asarray(Image.open(tmp_path / "out" / "contact_sheet.png"))
    found = {tuple(color) for color in sheet[:, 210:].reshape(-1, 3)}
    for red, green, blue in COLORS.values():
        assert found & {(red, green, blue + number) for number in range(6)}
    assert sheet.shape[1] <= 210 + MAX_COLUMNS * 50


def test_the_same_command_again_does_nothing(pictures, tmp_path, capsys):
    main(words(pictures))
    (tmp_path / "out" / "contact_sheet.png").unlink()
    capsys.readouterr()
    main(words(pictures))
    assert "complete already: nothing to do" in capsys.readouterr().out
    assert (tmp_path / "out" / "contact_sheet.png").is_file()


@pytest.mark.parametrize("flag", ["--dry_run", "--dry-run"])
def test_a_dry_run_shows_the_plan_and_writes_nothing(flag, pictures, tmp_path, capsys):
    main(words(pictures, flag))
    shown = capsys.readouterr().out
    assert "8 images in 1 shard" in shown
    assert "4 images in 1 shard" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--source", "nowhere"], "there is nothing at nowhere"),
        (["--size", "40"], "its short side must have 40 pixels or more, got 20x12"),
        (["--crop", "none"], "it must have 8x8 pixels, got 20x12; choose a crop"),
        (["--crop", "round"], "crop"),
        (["--channels", "2"], "channels"),
        (["--heldout", "0"], "heldout must be a share between 0 and 1 or a whole number"),
        (["--heldout", "7"], "(6 of 12 images at most), got 7.0"),
        (["--samples_per_shard", "0"], "samples_per_shard must be at least 1"),
        (["--workers", "-1"], "workers and max_unreadable must be at least 0"),
        (["--kind", "film"], "kind must be auto or one of folder"),
        (["--size", "many"], "size"),
        (["--nonsense", "3"], "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_fit_is_one_line(args, message, pictures, tmp_path, capsys):
    assert message in refused(capsys, *words(pictures, *args))
    assert not (tmp_path / "out").exists()


def test_damaged_files_are_named_and_left_out_on_request(pictures, tmp_path, capsys):
    (pictures / "red" / "2.png").write_bytes(b"\x89PNG and then nothing")
    line = refused(capsys, *words(pictures))
    assert "at most 0 images may be unreadable, got 1: red/2.png" in line
    main(words(pictures, "--max_unreadable", "1"))
    shown = capsys.readouterr().out
    assert "1, left out:" in shown
    assert re.search(r"2: blue \d, red \d", shown)
    counts = {name: int(num) for name, num in re.findall(r"(blue|red) (\d)", shown)}
    index = ShardIndex.read(tmp_path / "out")
    assert sum(counts.values()) == sum(split.num_samples for split in index.splits.values())
    assert counts["red"] == counts["blue"] - 1
    assert index.num_unreadable == 1


def test_no_number_of_unreadable_images_is_named_that_would_not_do(pictures, capsys):
    for file in [*pictures.rglob("*.png")][1:]:
        file.write_bytes(b"\x89PNG and then nothing")
    line = refused(capsys, *words(pictures))
    assert "at least 1 image to train on and 2 held out must be readable, got" in line
    assert "11 are not: " in line
    assert "max_unreadable" not in line


def test_another_plan_is_refused(pictures, capsys):
    main(words(pictures))
    line = refused(capsys, *words(pictures, "--size", "6", "--seed", "1"))
    assert "prepared with other settings: seed was 0 and is 1, shape was [3, 8, 8] and is [" in line
    assert "size was 8 and is 6; give those" in line


def test_grey_pictures_have_one_channel_unless_one_is_not(pictures, tmp_path):
    """Classes that look alike at first do not decide for all."""
    for file in pictures.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    main(words(pictures))
    assert ShardIndex.read(tmp_path / "out").shape == (1, 8, 8)
    Image.new("RGB", (20, 12), "red").save(pictures / "red" / "5.png")
    color = ["--out", str(tmp_path / "color")]
    main(words(pictures, *color))
    assert ShardIndex.read(tmp_path / "color").shape == (3, 8, 8)
    main(words(pictures, "--channels", "1", "--out", str(tmp_path / "grey")))
    assert ShardIndex.read(tmp_path / "grey").shape == (1, 8, 8)


def test_without_a_size_images_stay_as_they_are_and_must_be_alike(pictures, tmp_path, capsys):
    fixed = ["prepare", "--source", str(pictures), "--out", str(tmp_path / "out"), "--workers=0"]
    main([*fixed, "--crop", "none", "--heldout", "4"])
    assert ShardIndex.read(tmp_path / "out").shape == (3, 12, 20)
    Image.new("RGB", (11, 12), "red").save(pictures / "red" / "5.png")
    assert "must have the same, got 12x11, 12x20; give a size" in refused(
        capsys, *fixed, "--crop", "none"
    )


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    shown = capsys.readouterr().out
    for name in inspect.signature(prepare).parameters:
        described = shown.split(f"\n  --{name}")[1].split("\n  --")[0]
        assert len(described.split()) > 6, name
