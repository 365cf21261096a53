# SPDX-License-Identifier: Apache-2.0
"""Scores by torch-fidelity (optional extra `fid`), on features that have been extracted already.

Every number here is that of torch-fidelity's `calculate_metrics` on the same images, with samples
as `input1` and data as `input2`, its default seed and its part-wise precision and recall. KID,
precision and recall are computed in float32 and the inception score in float64, as there; only the
mean of the Frechet distance is in float64 here and in float32 there.

torch-fidelity is imported on use: without it all other distances work.
"""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from scm_lightning.given_files import open_regular
from scm_lightning.metrics.frechet import Statistics, require_two
from scm_lightning.teachers.checkpoint_files import file_sha256
from scm_lightning.teachers.tensors_only import load_tensors

INSTALL = 'pip install -c constraints.txt ".[fid]"'
KID_SUBSET_SIZE = 1000
"""Samples and data of one of the 100 subsets that a KID is the mean over; at most all there are."""
NEIGHBOURHOOD = 3
"""Precision and recall: a set reaches as far as the third neighbour of each of its members."""
NUM_SPLITS = 10
"""Parts of the samples that an inception score is the mean over."""


def is_installed() -> bool:
    """Whether torch-fidelity is there."""
    return importlib.util.find_spec("torch_fidelity") is not None


def require_installed(what: str) -> None:
    """Check that torch-fidelity is there.

    Raises:
        ValueError: if not.
    """
    if not is_installed():
        raise ValueError(f"{what} need torch-fidelity, which is not installed; run {INSTALL}")


def fid(real: Statistics, generated: Statistics) -> float:
    """Frechet distance by torch-fidelity; NaN where features are.

    Raises:
        ValueError: if a set has fewer than two members.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    require_two(real, generated)
    if not all(bool(each.cov.isfinite().all()) for each in (real, generated)):
        return float("nan")
    one, two = ({"mu": each.mean.numpy(), "sigma": each.cov.numpy()} for each in (generated, real))
    return float(fid_statistics_to_metric(one, two, verbose=False)[KEY_METRIC_FID])


def kid(samples: Tensor, data: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the kernel distance over subsets.

    Args:
        samples: features. (N, D) float32.
        data: features. (M, D) float32.

    Source: Binkowski et al., arXiv 1801.01401.
    """
    from torch_fidelity import metric_kid

    found = metric_kid.kid_features_to_metric(
        samples,
        data,
        kid_subset_size=min(KID_SUBSET_SIZE, len(samples), len(data)),
        verbose=False,
    )
    return found[metric_kid.KEY_METRIC_KID_MEAN], found[metric_kid.KEY_METRIC_KID_STD]


def precision_recall(samples: Tensor, data: Tensor) -> tuple[float, float]:
    """Share of samples within reach of the data, and of the data within reach of samples.

    Args:
        samples: features. (N, D) float32, N > NEIGHBOURHOOD.
        data: features. (M, D) float32, M > NEIGHBOURHOOD.

    Source: Kynkaanniemi et al., arXiv 1904.06991.
    """
    from torch_fidelity import metric_prc

    found = metric_prc.prc_features_to_metric(
        samples, data, prc_neighborhood=NEIGHBOURHOOD, save_cpu_ram=True, verbose=False
    )
    return found[metric_prc.KEY_METRIC_PRECISION], found[metric_prc.KEY_METRIC_RECALL]


def inception_score(logits: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the score over ten parts of the samples, which are shuffled.

    Args:
        logits: Inception's, without bias. (N, 1008) float32, N >= NUM_SPLITS.

    Source: Salimans et al., arXiv 1606.03498.
    """
    from torch_fidelity import metric_isc

    found = metric_isc.isc_features_to_metric(logits, splits=NUM_SPLITS)
    return found[metric_isc.KEY_METRIC_ISC_MEAN], found[metric_isc.KEY_METRIC_ISC_STD]


def rgb_bytes(images: Tensor) -> Tensor:
    """What torch-fidelity looks at: 8-bit color images.

    Rounded, not cut off: 8-bit pixels that were made data units and back come out as they were,
    and equal those of a PNG file of the image. torch-fidelity itself only takes bytes.

    Args:
        images: (B, 1, H, W), gray, or (B, 3, H, W); values in [0, 1].

    Returns:
        (B, 3, H, W) uint8.

    Raises:
        ValueError: if there are other channels.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"features by torch-fidelity are of gray or color images, (1, H, W) or (3, H, W), got "
            f"{tuple(images.shape[1:])}; choose an extractor made for your data"
        )
    return (images * 255.0).round().to(torch.uint8).expand(-1, 3, -1, -1)


def read_weights(file: Path) -> tuple[dict[str, Tensor], str]:
    """Weights from a file in torch's format, without running anything in it.

    Args:
        file: a state dict that `torch.save` wrote.

    Returns:
        Tensors by name, and the SHA-256 of the file.

    Raises:
        ValueError: if it is missing, damaged, or more than tensors.
    """
    try:
        with open_regular(file) as opened:
            digest = file_sha256(opened, file.stat().st_size)
            weights = load_tensors(opened)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file} must be a file of weights that torch.load reads with weights_only=True: "
            f"{error}; download or convert it again"
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(each, Tensor) for name, each in weights.items()
    ):
        raise ValueError(f"{file} must hold a state dict of tensors, got {type(weights).__name__}")
    return weights, digest


def downloaded(url: str, sha256_start: str | None) -> Path:
    """A file in torch hub's folder, from the net if it is not there yet.

    Args:
        url: where it is published.
        sha256_start: first digits of its SHA-256; None where none is published.

    Raises:
        ValueError: if it cannot be had, or is not what was published.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), sha256_start)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{url} cannot be downloaded: {error}; download it elsewhere, and give the path of "
                "the file as weights of the extractor"
            ) from error
    return file
