# SPDX-License-Identifier: Apache-2.0
"""`scm prepare`: from images as they are handed out to shards that a run reads."""

import os
from typing import TYPE_CHECKING, Literal

from scm_lightning.saying import say
from scm_lightning.whole_files import write_picture

if TYPE_CHECKING:
    from scm_lightning.preparation.captions import Captions
    from scm_lightning.preparation.sources import ImageSource
    from scm_lightning.preparation.transform import ImageTransform

DEFAULT_SIZE = 64


def prepare(
    source: str,
    out: str,
    kind: str = "auto",
    labels: str | None = None,
    captions: str | None = None,
    text_encoder: str | None = None,
    text_length: int | None = None,
    frames: int | None = None,
    size: int | None = None,
    crop: Literal["center", "adm", "none"] = "center",
    channels: Literal[1, 3] | None = None,
    background: tuple[int, int, int] = (255, 255, 255),
    upscale: bool = False,
    heldout: float | None = None,
    samples_per_shard: int = 1000,
    normalize: Literal["measured", "range", "paper"] = "measured",
    latents: str | None = None,
    latents_stored: Literal["mean", "mean_std"] = "mean_std",
    latents_batch_size: int = 32,
    latents_dtype: Literal["float16", "float32"] = "float16",
    latents_pixels: Literal["signed", "unit"] = "signed",
    latents_compute_dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "cpu",
    max_unreadable: int = 0,
    workers: int | None = None,
    seed: int = 0,
    dry_run: bool = False,
) -> None:
    """Write shards of a set of images, which a run reads with scm_lightning.data.Shards.

    Run the same command again if it was interrupted; it continues.

    Args:
        source: folder of images (its folders are classes), zip archive, webdataset shards
            ("a-{000..099}.tar"), ImageNet as Kaggle hands it out, CIFAR-10's archive,
            Fashion-MNIST's folder, or a data set saved by Hugging Face's datasets.
        out: folder to write.
        kind: what the source is, if it cannot be found out: folder, imagenet, zip, webdataset,
            cifar10, fashion or huggingface.
        labels: CSV file of classes with the header file,label, for a folder or zip archive.
        captions: CSV file with the header file,caption, for a folder or zip archive; txt for
            webdataset shards, whose captions are KEY.txt; a column's name for a Hugging Face data
            set.
        text_encoder: encoder of the captions: words (a vector for every word, no download), or a
            folder with CLIP, T5 or Gemma as transformers saves them.
        text_length: most words or tokens of a caption; the rest is cut off. By default 16 for
            words, and for others 128 or as many as they take.
        frames: frames of a clip. Every folder of images (CLASS/CLIP/000.png, ...), or every
            animated GIF or WebP, becomes one sample of its first frames.
        size: side of the images that are written, in pixels. By default 64, and with crop none
            what the images have.
        crop: center (the central square, resized by Lanczos), adm (as ADM and EDM prepare
            ImageNet) or none (images must have the size already).
        channels: 1 for grey, 3 for color. By default 1 if all of 16 images looked at are grey.
        background: color behind transparent pixels: red, green, blue, from 0 to 255.
        upscale: whether images that are smaller than the size are enlarged; else they count as
            unreadable.
        heldout: what is held out for scores, as a share (0.1) or a number of images (5000), as
            many of every class. By default the source's own split, or 0.1.
        samples_per_shard: images in every file.
        normalize: how pixels or latents are brought to the data that a network sees: measured, by
            their mean and deviation; range, pixels to the paper's [-1, 1] at sigma_data 0.5; paper,
            latents by the paper's mean and deviation, which hold for sd-vae-ft-mse alone.
        latents: autoencoder of diffusers (AutoencoderKL) whose latents are written in the place of
            pixels: its folder, or its name on the Hugging Face hub, from where it is downloaded.
        latents_stored: mean of the posterior, or mean_std, both, of which a training batch draws.
        latents_batch_size: images encoded at once.
        latents_dtype: type of the numbers written.
        latents_pixels: what the autoencoder is given: signed, images in [-1, 1], as the paper; or
            unit, images in [0, 1], as EDM2, whose networks of latents need it.
        latents_compute_dtype: type that the encoder computes in.
        device: where the encoders of latents and of text run: cpu, cuda, cuda:1.
        max_unreadable: images left out at most because they cannot be read.
        workers: processes that load images, 0 for none beside the program. By default one for
            every core. The files are the same for any number.
        seed: of the order of the images, and of the choice of what is held out.
        dry_run: whether only to show what would be written.

    Raises:
        ValueError: if the source, the folder or the options do not fit.
    """
    # Here, since `scm prepare --help` should not wait for torch.
    from scm_lightning.cli.next_steps import say_next, training_on
    from scm_lightning.cli.prepare_report import SHEET_FILE, contact_sheet, summary
    from scm_lightning.data.index import INDEX_FILE
    from scm_lightning.data.latents import Autoencoder
    from scm_lightning.data.location import folder_to_write
    from scm_lightning.preparation import EncodedLatents, Pixels, Recipe, engine
    from scm_lightning.preparation.probe import fit_transform
    from scm_lightning.preparation.sources import open_source

    workers = _checked(workers, max_unreadable)
    if size is None and crop != "none":
        size = DEFAULT_SIZE
    folder, autoencoder = folder_to_write(out), None
    images, made_by = _clips(open_source(source, kind, labels), frames, latents)
    texts = _captions(images, captions, text_encoder, text_length, device)
    transform, shape = fit_transform(images, made_by(size, crop, channels, background, upscale))
    content: Pixels | EncodedLatents = Pixels(shape)
    if latents is not None:
        autoencoder = Autoencoder(latents, shape, latents_pixels)
        types = latents_dtype, latents_compute_dtype
        content = EncodedLatents(autoencoder, latents_stored, latents_batch_size, *types, device)
    recipe = Recipe(images, transform, content, heldout, samples_per_shard, normalize, seed, texts)
    say(f"{images.description}: {len(images.items):,} images")
    if dry_run:
        summary(recipe)
        return
    was_complete = (folder / INDEX_FILE).is_file()
    done = engine.prepare(recipe, folder, workers, max_unreadable)
    sheet = folder / SHEET_FILE
    is_drawn = sheet.is_file() or write_picture(
        sheet, lambda: contact_sheet(folder, done.index, autoencoder, device)
    )
    if was_complete:
        say(f"{folder} is complete already: nothing to do")
    summary(recipe, done)
    if is_drawn:
        say(f"what the network will see: {sheet}")
    say_next(training_on(str(folder), done.index))


def _checked(workers: int | None, max_unreadable: int) -> int:
    """The number of workers, if that and the other number can be."""
    workers = num_cores() if workers is None else workers
    if workers < 0 or max_unreadable < 0:
        raise ValueError(
            f"workers and max_unreadable must be at least 0, got {workers} and {max_unreadable}"
        )
    return workers


def _clips(
    images: "ImageSource", frames: int | None, latents: str | None
) -> "tuple[ImageSource, type[ImageTransform]]":
    """The images, or the clips that they are frames of, and what makes samples of them."""
    from scm_lightning.preparation.sources import ClipSource
    from scm_lightning.preparation.transform import ClipTransform, ImageTransform

    if frames is None:
        return images, ImageTransform
    if latents is not None:
        raise ValueError(f"frames go with pixels, got latents {latents}; leave one of them out")
    return ClipSource(images, frames), ClipTransform


def _captions(
    images: "ImageSource",
    captions: str | None,
    text_encoder: str | None,
    text_length: int | None,
    device: str,
) -> "Captions | None":
    """Captions of the images and their encoder, if there are to be any."""
    from scm_lightning.preparation import Captions
    from scm_lightning.preparation.sources import read_captions
    from scm_lightning.text import open_encoder

    if captions is None:
        if text_encoder is not None or text_length is not None:
            raise ValueError(
                "text_encoder and text_length go with captions, got no captions; give captions, or "
                "leave them out"
            )
        return None
    if text_encoder is None:
        raise ValueError(
            f"captions need a text_encoder, got none for {captions}; give text_encoder words, or "
            "the folder of one of transformers"
        )
    encoder = open_encoder(text_encoder, text_length, device)
    names = [item.name for item in images.items]
    return Captions(read_captions(images, captions), names, encoder)


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
