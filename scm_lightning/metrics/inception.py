# SPDX-License-Identifier: Apache-2.0
"""Inception's features: those of the FID.

torch-fidelity's `inception-v3-compat` is the network of the original FID, with the weights of
2015-12-05 and TensorFlow 1's way to resize: to 299x299 pixels, bilinear, without antialiasing.
"""

from pathlib import Path

import torch
from torch import Tensor

from scm_lightning.given_files import given_path
from scm_lightning.metrics.features import INCEPTION_DISTANCE, FeatureExtractor, Features
from scm_lightning.metrics.fidelity import downloaded, read_weights, require_installed, rgb_bytes

PUBLISHED_SHA256 = "6726825d"
"""First digits of the SHA-256 of torch-fidelity's weights, as its file's name gives them."""


class InceptionFeatures(FeatureExtractor):
    """The 2,048 pooled features of Inception-v3, and its logits without bias, by torch-fidelity.

    The only extractor whose Frechet distance is called FID. Inception's classes are not the data's,
    so its logits give the inception score, and no accuracy.

    Args:
        weights: file of the weights, as torch-fidelity publishes them; None downloads them once.
            A file of other weights is named so in the description.

    Raises:
        ValueError: if torch-fidelity is not installed, or the weights do not fit or cannot be
            downloaded.
    """

    num_features = 2048
    distance_name = INCEPTION_DISTANCE
    preparation = (
        "8-bit, gray as three channels; 299x299, bilinear as in TensorFlow 1, no antialiasing"
    )
    only_images = True
    batch_size = 64

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        require_installed("features of Inception")
        from torch_fidelity import feature_extractor_inceptionv3 as inception

        url = inception.URL_INCEPTION_V3
        file = Path(given_path(weights)) if weights else downloaded(url, PUBLISHED_SHA256)
        digest = read_weights(file)[1]  # before torch-fidelity, which would run what is in the file
        try:
            self.network = inception.FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=str(file),
            )
        except RuntimeError as error:
            raise ValueError(
                f"{file} must hold the weights of torch-fidelity's inception-v3-compat, got "
                "others; download them again"
            ) from error
        published = digest.startswith(PUBLISHED_SHA256)
        self.description = f"InceptionFeatures, weights {digest[:12]}"
        if not published:
            self.description += f", not the published {PUBLISHED_SHA256}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Extract features. (B, 1, H, W) or (B, 3, H, W), values in [0, 1]."""
        features, logits = self.network(rgb_bytes(images))
        return Features(features, logits)
