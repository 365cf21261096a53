# SPDX-License-Identifier: Apache-2.0
"""Floor 3: encoders of text: captions and prompts become the vectors that a network sees."""

from scm_lightning.text.encoder import TextEncoder
from scm_lightning.text.opening import open_encoder
from scm_lightning.text.pretrained import Transformers
from scm_lightning.text.words import Words

__all__ = ["TextEncoder", "Transformers", "Words", "open_encoder"]
