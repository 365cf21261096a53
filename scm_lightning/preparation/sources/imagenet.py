# SPDX-License-Identifier: Apache-2.0
"""ImageNet as it is handed out (ILSVRC CLS-LOC), or with its validation images sorted by class.

    train/n01440764/*.JPEG
    val/*.JPEG and LOC_val_solution.csv, or val/n01440764/*.JPEG

The classes are the folders of the training images (WordNet numbers) in their order, which is the
usual numbering. The folder `test`, whose labels are secret, is not looked at.
"""

from pathlib import Path, PurePosixPath

from scm_lightning.preparation.sources.files import FileSource, Folder
from scm_lightning.preparation.sources.labels import find_splits, folder_classes, read_table

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
    splits, inner = find_splits([*tree.sizes])
    if any("/" not in name for name in inner):
        files = [solution] if solution else [f / SOLUTION for f in (path, root, *root.parents[:3])]
        class_of = _solution(next((file for file in files if file.is_file()), files[0]))
        # An image without a class stays outside of all folders, and is refused below.
        sorted_ = (f"{class_of.get(PurePosixPath(n).stem, '')}/{n}".lstrip("/") for n in inner)
        inner = [old if "/" in old else new for old, new in zip(inner, sorted_, strict=True)]
    classes = folder_classes(splits, inner)
    if not classes[1]:
        raise ValueError(
            f"{root / 'train'} must hold two or more folders of classes with images, got "
            f"{len(tree.sizes)} images in none or one; give another path"
        )
    return FileSource("imagenet", tree, splits, classes)


def _solution(file: Path) -> dict[str, str]:
    """Class of every validation image: "n01978287 85 1 499 272 ..." is the class, then boxes."""
    if not file.is_file():
        raise ValueError(
            f"ImageNet's validation images are not sorted into folders of classes, and {file} is "
            f"missing; put {SOLUTION} there, or give its path as the labels"
        )
    return {name: text.split(" ")[0] for name, text in read_table(file, SOLUTION_HEADER)}
