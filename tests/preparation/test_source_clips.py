# SPDX-License-Identifier: Apache-2.0
"""Clips from folders of frames and from animated files, down to shards."""

import numpy as np
import pytest
from PIL import Image

from scm_lightning.cli import main
from scm_lightning.data import ShardIndex, Shards, read_shard
from scm_lightning.preparation.sources import ClipSource, UnreadableImageError, open_source


def clip(seed, num_frames=3, channels=1, side=6):
    """Frames of smooth pictures, (F, H, W, C) uint8; gray ones have few values, as GIF keeps."""
    random = np.random.default_rng(seed)
    return random.integers(0, 8, (num_frames, side, side, channels), dtype=np.uint8) * 32


def write_frames(folder, frames):
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, 8):  # so that names do not sort as numbers do
        Image.fromarray(frame.squeeze()).save(folder / f"{number}.png")


def write_animation(file, frames, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (Image.fromarray(frame.squeeze()) for frame in frames)
    first.save(file, save_all=True, append_images=others, duration=100, **options)


def test_folders_of_frames_are_clips_in_the_order_of_their_numbers(tmp_path):
    for number in range(4):
        write_frames(tmp_path / "cats" / f"c{number}", clip(number, 4))
        write_frames(tmp_path / "dogs" / f"d{number}", clip(10 + number, 4))
    source = ClipSource(open_source(str(tmp_path)), 3)
    assert source.class_names == ["cats", "dogs"]
    assert [(item.name, item.label) for item in source.items][3:5] == [
        ("cats/c3", 0),
        ("dogs/d0", 1),
    ]
    np.testing.assert_array_equal(source.load(5), clip(11, 4)[:3])


def test_folders_that_are_clips_themselves_are_no_classes(tmp_path):
    for number in range(4):
        write_frames(tmp_path / f"c{number}", clip(number))
    source = ClipSource(open_source(str(tmp_path)), 2)
    assert not source.class_names
    assert {item.label for item in source.items} == {0}


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animated_file_is_a_clip(kind, tmp_path):
    """Lossless in both: gray by its palette, and color."""
    options = {"lossless": True} if kind == "webp" else {}
    for number in range(4):
        write_animation(tmp_path / "a" / f"{number}.{kind}", clip(number), **options)
        write_animation(tmp_path / "b" / f"{number}.{kind}", clip(10 + number), **options)
    source = ClipSource(open_source(str(tmp_path)), 3)
    assert len(source.items) == 8
    for number, seed in ((1, 1), (4, 10)):
        loaded = source.load(number)[..., :3]
        assert loaded.shape == (3, 6, 6, 3)
        np.testing.assert_array_equal(loaded, np.broadcast_to(clip(seed), loaded.shape))


def test_clips_that_cannot_be_used_say_why(tmp_path):
    write_frames(tmp_path / "short", clip(0, 2))
    write_frames(tmp_path / "mixed", clip(1))
    Image.new("L", (5, 6)).save(tmp_path / "mixed" / "9.png")
    (tmp_path / "late").mkdir()
    source = ClipSource(open_source(str(tmp_path)), 3)
    with pytest.raises(UnreadableImageError, match=r"mixed must have frames of one size, got \["):
        source.load(0)
    with pytest.raises(UnreadableImageError, match="short must have 3 frames, got 2"):
        source.load(1)
    write_animation(tmp_path / "moving" / "a.gif", clip(2, 2))
    source = ClipSource(open_source(str(tmp_path / "moving")), 3)
    with pytest.raises(UnreadableImageError, match="it must have 3 frames, got 2"):
        source.load(0)
    with pytest.raises(ValueError, match="frames must be at least 2, got 1"):
        ClipSource(open_source(str(tmp_path / "moving")), 1)


def test_gray_frames_of_a_color_clip_are_in_color(tmp_path):
    write_frames(tmp_path / "a", clip(0, 3, 3))
    Image.fromarray(clip(1)[0].squeeze()).save(tmp_path / "a" / "9.png")
    loaded = ClipSource(open_source(str(tmp_path)), 3).load(0)
    assert loaded.shape == (3, 6, 6, 3)
    np.testing.assert_array_equal(loaded[1], np.repeat(clip(1)[0], 3, axis=-1))


def test_prepare_writes_clips_that_a_run_reads(tmp_path, capsys):
    """From files to batches: as many samples as clips, of the shape that the index says."""
    for name in ("a", "b"):
        for number in range(5):
            write_frames(tmp_path / "set" / name / f"{number}", clip(number, 3, 1, 8))
    out = tmp_path / "shards"
    main(
        [
            "prepare",
            f"--source={tmp_path / 'set'}",
            f"--out={out}",
            "--frames=3",
            "--size=4",
            "--heldout=0.3",
        ]
    )
    assert "clips of 3 frames of folder" in capsys.readouterr().out
    index = ShardIndex.read(out)
    assert (index.shape, index.dtype, index.class_names) == ((1, 3, 4, 4), "uint8", ["a", "b"])
    (shard,) = index.splits["heldout"].shards
    assert next(read_shard(str(out / shard.name))).array.shape == (1, 3, 4, 4)
    data = Shards(0.5, str(out), batch_size=4)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).x0.shape == (4, 1, 3, 4, 4)
    assert (out / "contact_sheet.png").is_file()


def test_frames_without_files_or_with_latents_are_refused(tmp_path, capsys):
    write_frames(tmp_path / "set", clip(0))
    options = [f"--source={tmp_path / 'set'}", f"--out={tmp_path / 'out'}", "--frames=2"]
    with pytest.raises(SystemExit):
        main(["prepare", *options, "--latents=anything"])
    assert "frames go with pixels, got latents" in capsys.readouterr().err
