# SPDX-License-Identifier: Apache-2.0
r"""Features of clips, made of an image extractor's features of their frames, and two distances.

    frame_distance      Frechet distance of phi(x_f), f = 1..F: all frames of all clips in one set
    temporal_distance   Frechet distance of (phi(x_2) - phi(x_1), ..., phi(x_F) - phi(x_{F-1}))

phi are the features of a frame. The first does not see in which order the frames come; the second
sees nothing that a clip's frames have in common. Both Gaussians follow exactly from mean and
covariance of the concatenation (phi(x_1), ..., phi(x_F)), which alone are kept:

    frames       m = mean_f m_f     C (N F - 1) = (N - 1) sum_f C_ff + N sum_f (m_f - m)(m_f - m)^T
    differences  A m, A C A^T       A the matrix of the differences

Neither is the FVD of the literature, which needs a network trained on videos.
Axes: B batch, C channels, F frames, D features of a frame, N clips.
"""

import torch
from torch import Tensor

from scm_lightning.metrics.features import FeatureExtractor, Features
from scm_lightning.metrics.frechet import Statistics

MAX_NUMBERS = 4096
"""Features of a clip, at most: the distance takes eigenvalues of their covariance."""


class ClipFeatures(FeatureExtractor):
    """Features of clips (B, C, F, H, W), in [0, 1]: those of their frames one after the other.

    Scores in them other than the two distances look at whole clips; the class of a clip is that
    with the highest mean over its frames.

    Args:
        of_frames: extractor of images.
        num_frames: frames F of a clip.

    Raises:
        ValueError: if a clip has more features than a covariance can be taken of.
    """

    distance_name = "of frames and of changes between them"

    def __init__(self, of_frames: FeatureExtractor, num_frames: int) -> None:
        super().__init__()
        self.num_features = num_frames * of_frames.num_features
        if self.num_features > MAX_NUMBERS:
            raise ValueError(
                f"{type(of_frames).__name__} gives {self.num_features} features of a clip of "
                f"{num_frames} frames, and at most {MAX_NUMBERS} can be compared; set "
                "metrics.features to an extractor with fewer, or to null"
            )
        self.of_frames = of_frames
        self.num_frames = num_frames
        self.description = f"{of_frames.description} of {num_frames} frames"
        self.preparation = f"every frame by itself: {of_frames.preparation}"
        self.batch_size = max(1, of_frames.batch_size // num_frames)

    def forward(self, images: Tensor) -> Features:
        """Extract features. (B, C, F, H, W), values in [0, 1]."""
        looked: Features = self.of_frames(images.transpose(1, 2).flatten(0, 1))
        features = looked.features.reshape(len(images), -1)
        if looked.logits is None or self.of_frames.is_inception:
            return Features(features, None)
        return Features(features, looked.logits.reshape(len(images), self.num_frames, -1).mean(1))

    @property
    def distances(self) -> dict[str, str]:
        """Keys of the distances, and how their columns are headed."""
        return {"frame_distance": "frames", "temporal_distance": "temporal"}

    def views(self, clips: Statistics) -> dict[str, Statistics]:
        """Statistics of frames and of differences, from those of clips."""
        return {
            "frame_distance": statistics_of_frames(clips, self.num_frames),
            "temporal_distance": statistics_of_differences(clips, self.num_frames),
        }


def statistics_of_frames(clips: Statistics, num_frames: int) -> Statistics:
    """Statistics of all frames in one set, from those of clips. (F D,) to (D,)."""
    means = clips.mean.reshape(num_frames, -1)
    within = clips.cov.reshape(*means.shape, *means.shape)
    mean, num = means.mean(0), clips.num_samples
    centred = means - mean
    scatter = (num - 1) * within.diagonal(dim1=0, dim2=2).sum(-1) + num * centred.T @ centred
    return Statistics(mean, scatter / max(num * num_frames - 1, 1), num * num_frames)


def statistics_of_differences(clips: Statistics, num_frames: int) -> Statistics:
    """Statistics of differences of consecutive frames. (F D,) to ((F - 1) D,)."""
    size = len(clips.mean) // num_frames
    identity = torch.eye(len(clips.mean), dtype=clips.mean.dtype)
    step = identity[size:] - identity[:-size]
    return Statistics(step @ clips.mean, step @ clips.cov @ step.T, clips.num_samples)
