# SPDX-License-Identifier: Apache-2.0
"""Scores by torch-fidelity (optional extra `fid`), on features that have been extracted already.

Every number here is that of torch-fidelity's `calculate_metrics` on the same images, with samples
as `input1` and data as `input2`, its default seed and its part-wise precision and recall. KID,
precision and recall are computed in float32 and the inception score in float64, as there.

torch-fidelity is imported on use: without it the Frechet distance, which does not need it, and the
nearest neighbours work.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from scm_lightning.given_files import open_regular
from scm_lightning.metrics.frechet import require
from scm_lightning.storage.archive import file_sha256, load_tensors

INSTALL = 'pip install -c constraints.txt ".[fid]"'
KID_SUBSET_SIZE = 1000
"""Samples and data of one of the 100 subsets that a KID is the mean over; at most all there are."""
NEIGHBOURHOOD = 3
"""Neighbour of each member up to which a set reaches, in precision and recall."""
NUM_SPLITS = 10
"""Parts of the samples that an inception score is the mean over."""


def is_installed() -> bool:
    """Tell whether torch-fidelity is installed."""
    return importlib.util.find_spec("torch_fidelity") is not None


def require_installed(what: str) -> None:
    """Check that torch-fidelity is installed.

    Raises:
        ValueError: if not.
    """
    if not is_installed():
        raise ValueError(f"{what} need torch-fidelity, which is not installed; run {INSTALL}")


def kid(samples: Tensor, data: Tensor) -> dict[str, float]:
    """Mean and standard deviation of the kernel distance over subsets: `kid` and `kid_std`.

    Args:
        samples: features. (N, D) float32, N > 1.
        data: features. (M, D) float32, M > 1.

    Source: Binkowski et al., arXiv 1801.01401.
    """
    from torch_fidelity import metric_kid as of

    require(2, "a kernel distance", real=len(data), generated=len(samples))
    options = {"kid_subset_size": min(KID_SUBSET_SIZE, len(samples), len(data)), "verbose": False}
    names = {"kid": of.KEY_METRIC_KID_MEAN, "kid_std": of.KEY_METRIC_KID_STD}
    return _measured(names, of.kid_features_to_metric, samples, data, **options)


def precision_recall(samples: Tensor, data: Tensor) -> dict[str, float]:
    """Share of samples within reach of the data, and of the data within reach of samples.

    Args:
        samples: features. (N, D) float32, N > NEIGHBOURHOOD.
        data: features. (M, D) float32, M > NEIGHBOURHOOD.

    Returns:
        `precision` and `recall`.

    Source: Kynkaanniemi et al., arXiv 1904.06991.
    """
    from torch_fidelity import metric_prc as of

    require(NEIGHBOURHOOD + 1, "a precision", real=len(data), generated=len(samples))
    options = {"prc_neighborhood": NEIGHBOURHOOD, "save_cpu_ram": True, "verbose": False}
    names = {"precision": of.KEY_METRIC_PRECISION, "recall": of.KEY_METRIC_RECALL}
    return _measured(names, of.prc_features_to_metric, samples, data, **options)


def inception_score(logits: Tensor) -> dict[str, float]:
    """Mean and standard deviation of the score over ten parts of the samples, which are shuffled.

    Args:
        logits: Inception's, without bias. (N, 1008) float32, N >= NUM_SPLITS.

    Returns:
        `inception_score` and `inception_score_std`.

    Source: Salimans et al., arXiv 1606.03498.
    """
    from torch_fidelity import metric_isc as of

    require(NUM_SPLITS, "an inception score", generated=len(logits))
    names = {
        "inception_score": of.KEY_METRIC_ISC_MEAN,
        "inception_score_std": of.KEY_METRIC_ISC_STD,
    }
    return _measured(names, of.isc_features_to_metric, logits, splits=NUM_SPLITS)


def rgb_bytes(images: Tensor) -> Tensor:
    """Convert images to what torch-fidelity takes: 8-bit color.

    Values are rounded, not cut off: 8-bit pixels converted to data units and back come out
    unchanged, and equal those of a PNG file of the image. torch-fidelity itself only takes bytes.

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
    """Path of a file in torch hub's folder, downloaded if it is not there yet.

    Args:
        url: where it is published.
        sha256_start: first digits of its SHA-256; None where none is published.

    Raises:
        ValueError: if it cannot be downloaded, or is not what was published.
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


def _measured(
    names: dict[str, str], measure: Callable[..., dict[str, float]], *sets: Tensor, **options: int
) -> dict[str, float]:
    """Scores of torch-fidelity, under our names for them; NaN if a feature is."""
    if not all(bool(each.isfinite().all()) for each in sets):
        return dict.fromkeys(names, float("nan"))
    found = measure(*sets, **options)
    return {ours: found[theirs] for ours, theirs in names.items()}
