# SPDX-License-Identifier: Apache-2.0
"""DINOv2's features, by torch-fidelity's extractor: of newer distances than the FID.

torch-fidelity resizes to 224x224 pixels, bilinear as in TensorFlow 1, and normalises by ImageNet's
mean and deviation. It would download code as well as weights, and takes no file; so the network is
this package's own, and its preparation of images is used. Published FD-DINOv2 values (Stein et al.,
arXiv 2306.04675) are of the size `l` and of bicubic resizing: near these, not equal.
"""

from pathlib import Path

import torch
from torch import Tensor

from scm_lightning.given_files import given_path
from scm_lightning.metrics.features import FeatureExtractor, Features
from scm_lightning.metrics.fidelity import downloaded, read_weights, require_installed, rgb_bytes
from scm_lightning.metrics.vision_transformer import VisionTransformer

SIZES = {"s": (384, 12), "b": (768, 12), "l": (1024, 24)}
"""Channels and depth, by the letter in a model's name."""
URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vit{0}14/dinov2_vit{0}14_pretrain.pth"


class DINOv2Features(FeatureExtractor):
    """The features of DINOv2's class token.

    Args:
        model: size of the network, `dinov2-vit-s-14`, `dinov2-vit-b-14` or `dinov2-vit-l-14`.
        weights: file of the weights as they are published; None downloads them once.

    Raises:
        ValueError: if torch-fidelity is not installed, there is no such size, or the weights do not
            fit or cannot be downloaded.
    """

    distance_name = "FD-DINOv2"
    preparation = "8-bit, gray as three channels; 224x224, bilinear as in TensorFlow 1"
    only_images = True
    batch_size = 64

    def __init__(self, model: str = "dinov2-vit-l-14", weights: str | None = None) -> None:
        super().__init__()
        names = {f"dinov2-vit-{size}-14": size for size in SIZES}
        if model not in names:
            raise ValueError(f"model must be one of {', '.join(names)}, got {model!r}")
        require_installed("features of DINOv2")
        from torch_fidelity.feature_extractor_base import FeatureExtractorBase
        from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

        file = Path(given_path(weights)) if weights else downloaded(URL.format(names[model]), None)
        tensors, digest = read_weights(file)
        with torch.device("meta"):
            network = VisionTransformer(*SIZES[names[model]])
        try:
            network.load_state_dict(tensors, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"{file} must hold the published weights of {model}, without registers, got "
                "others; give its file, or the model that the file is of"
            ) from error
        self.network = FeatureExtractorDinoV2.__new__(FeatureExtractorDinoV2)
        FeatureExtractorBase.__init__(self.network, model, ["dinov2"])
        self.network.feature_extractor_internal_dtype = torch.float32
        self.network.model = network.float()
        self.num_features = SIZES[names[model]][0]
        self.description = f"DINOv2Features {model}, weights {digest[:12]}"
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Features:
        """Extract features. (B, 1, H, W) or (B, 3, H, W), values in [0, 1]."""
        (features,) = self.network(rgb_bytes(images))
        return Features(features, None)
