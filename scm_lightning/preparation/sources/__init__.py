# SPDX-License-Identifier: Apache-2.0
"""Sources of images to prepare: folders, archives and data sets as they are handed out."""

from scm_lightning.preparation.sources.captions import read_captions
from scm_lightning.preparation.sources.clips import ClipSource
from scm_lightning.preparation.sources.decoding import UnreadableImageError
from scm_lightning.preparation.sources.opening import KINDS, open_source
from scm_lightning.preparation.sources.source import ImageSource, Item

__all__ = [
    "KINDS",
    "ClipSource",
    "ImageSource",
    "Item",
    "UnreadableImageError",
    "open_source",
    "read_captions",
]
