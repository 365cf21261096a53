# SPDX-License-Identifier: Apache-2.0
"""Where images to prepare come from: folders, archives and data sets as they are handed out."""

from scm_lightning.data.sources.opening import KINDS, detect_kind, open_source
from scm_lightning.data.sources.source import ImageSource, Item, UnreadableImageError

__all__ = ["KINDS", "ImageSource", "Item", "UnreadableImageError", "detect_kind", "open_source"]
