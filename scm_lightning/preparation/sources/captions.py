# SPDX-License-Identifier: Apache-2.0
"""Captions of images, from where the kind of source keeps them.

folder, zip     a table in CSV with the header file,caption
webdataset      KEY.txt beside the image: `txt`
huggingface     a column of texts: its name
"""

from pathlib import Path

from scm_lightning.given_files import given_path
from scm_lightning.preparation.sources.files import FileSource
from scm_lightning.preparation.sources.huggingface import HuggingFaceSource
from scm_lightning.preparation.sources.labels import match_rows, read_table
from scm_lightning.preparation.sources.source import ImageSource
from scm_lightning.preparation.sources.tars import CAPTION, WebDatasetSource

CAPTION_HEADER = ("file", "caption")


def read_captions(source: ImageSource, where: str) -> list[str]:
    """Read the caption of every image.

    Args:
        source: the images.
        where: file of a table, `txt`, or the name of a column; see the module.

    Returns:
        Captions in the order of the images, without blanks around them.

    Raises:
        ValueError: if they cannot be read, or an image has none or two, or one has no image.
    """
    if isinstance(source, FileSource):
        table = Path(given_path(where))
        names = [item.name for item in source.items]
        return match_rows(read_table(table, CAPTION_HEADER), names, str(table), "caption")
    if isinstance(source, HuggingFaceSource):
        return source.texts(where)
    if not isinstance(source, WebDatasetSource):
        raise ValueError(
            f"captions go with images in a folder, a zip archive, webdataset shards or a data set "
            f"of Hugging Face, got {source.description}; leave them out"
        )
    if where != CAPTION:
        raise ValueError(
            f"captions of webdataset shards are their members KEY.{CAPTION}, got {where}; give "
            f"captions {CAPTION}"
        )
    return source.texts()
