# SPDX-License-Identifier: Apache-2.0
"""ImageNet as it is handed out (ILSVRC CLS-LOC), or with its validation images sorted by class.

    train/n01440764/*.JPEG
    val/*.JPEG and LOC_val_solution.csv, or val/n01440764/*.JPEG

The classes are the folders of the training images (WordNet numbers) in their order, which is the
usual numbering. The folder `test`, whose labels are secret, is not looked at.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from scm_lightning.data.sources.files import FileSource, Folder
from scm_lightning.data.sources.labels import find_splits, folder_classes, read_table

ROOTS = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
SOLUTION = "LOC_val_solution.csv"
SOLUTION_HEADER = ("ImageId", "PredictionString")


def open_imagenet(path: Path, solution: Path | None) -> FileSource:
    """Find training and validation images and their classes.

    Args:
        path: folder of the data set, `ILSVRC`'s parent or any folder down to that of `train`.
        solution: classes of validation images that are not sorted; by default the file
            `LOC_val_solution.csv` in the folder or above the images.

    Returns:
        The source.

    Raises:
        ValueError: if there is no folder `train` of classes, or validation images have no class.
    """
    root = next((path / each for each in ROOTS if (path / each / "train").is_dir()), None)
    if root is None:
        raise ValueError(
            f"{path} must hold ImageNet's folder train, itself or in ILSVRC/Data/CLS-LOC, which is "
            "missing; give another path"
        )
    tree = Folder(root, below=("train", "val"))
    splits, inner = find_splits(tree.names)
    if any("/" not in name for name in inner):
        above = (path, root, *root.parents[:3])
        files = [solution] if solution else [folder / SOLUTION for folder in above]
        inner = _sort_by_class(inner, next((file for file in files if file.is_file()), files[0]))
    labels, class_names = folder_classes(splits, inner)
    if not class_names:
        raise ValueError(
            f"{root / 'train'} must hold two or more folders of classes with images, got "
            f"{len(tree.names)} images in none or one; give another path"
        )
    return FileSource("imagenet", tree, labels, splits, class_names)


def _sort_by_class(inner: Sequence[str], solution: Path) -> list[str]:
    """Put a class before the names of validation images that have none yet."""
    if not solution.is_file():
        raise ValueError(
            f"ImageNet's validation images are not sorted into folders of classes, and {solution} "
            f"is missing; put {SOLUTION} there, or give its path as the labels"
        )
    # "n01978287 85 1 499 272 ...": the class, then boxes.
    class_of = {name: text.split(" ")[0] for name, text in read_table(solution, SOLUTION_HEADER)}
    missing = [n for n in inner if "/" not in n and PurePosixPath(n).stem not in class_of]
    if missing:
        raise ValueError(
            f"{solution} must name the class of every validation image, got none for "
            f"{len(missing)}, first {missing[0]}; get it again"
        )
    return [n if "/" in n else f"{class_of[PurePosixPath(n).stem]}/{n}" for n in inner]
