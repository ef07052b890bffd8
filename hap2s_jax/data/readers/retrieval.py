"""Class retrieval: CUB-200-2011, Cars196, Stanford Online Products, In-shop Clothes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hap2s_jax.data.readers.files import FileSource, Parts, read_lines
from hap2s_jax.errors import UserError


def read_cub(root: Path, *, boxes: bool = False) -> Parts:
    """CUB-200-2011 (Wah et al. 2011): the first half of the classes trains, the second tests.

    The official training and test images split every class in two; they are joined.

    Args:
      root: the folder with images.txt.
      boxes: whether to cut every image to the bird's box.

    Raises:
      UserError: a list is malformed.
    """
    paths = _two_columns(root / "images.txt")
    classes = _two_columns(root / "image_class_labels.txt")
    _same_keys(root, paths, classes)
    corners = None
    if boxes:
        rows = {line.split()[0]: line.split()[1:] for line in read_lines(root / "bounding_boxes.txt")}
        _same_keys(root, paths, rows)
        x, y, w, h = np.array([rows[key] for key in paths], np.float64).reshape(-1, 4).T
        corners = np.stack([x, y, x + w, y + h], axis=1).round().astype(np.int32)
    return halves(
        "cub200_2011",
        root,
        [f"images/{p}" for p in paths.values()],
        [int(classes[k]) for k in paths],
        corners,
    )


def read_cars(root: Path, *, boxes: bool = False) -> Parts:
    """Cars196 (Krause et al. 2013): the first half of the classes trains, the second tests.

    Args:
      root: the folder with `car_ims/` and `cars_annos.mat`, or with `cars_train/`, `cars_test/` and `devkit/`; also
        as Kaggle's copy nests them, `cars_train/cars_train/` and `car_devkit/devkit/`.
      boxes: whether to cut every image to the car's box.

    Raises:
      UserError: the annotations are missing, or are the ones without the test labels.
    """
    if (root / "cars_annos.mat").is_file():
        rows = _annotations(root / "cars_annos.mat")
        paths = [str(row["relative_im_path"]) for row in rows]
    else:
        rows, paths = [], []
        for folder, file in (
            ("cars_train", "cars_train_annos.mat"),
            ("cars_test", "cars_test_annos_withlabels.mat"),
        ):
            devkits = (root / "devkit", root, root / "car_devkit" / "devkit")
            place = next((d / file for d in devkits if (d / file).is_file()), None)
            if place is None:
                raise UserError(
                    f"cars196: {root / 'devkit' / file} is missing; the test labels are a download of their own, "
                    "cars_test_annos_withlabels.mat"
                )
            part = _annotations(place)
            rows += part
            nested = f"{folder}/{folder}" if (root / folder / folder).is_dir() else folder
            paths += [f"{nested}/{row['fname']}" for row in part]
    corners = None
    if boxes:
        # MATLAB counts pixels from 1 and includes the last.
        corners = np.array([[row[f"bbox_{c}"] for c in ("x1", "y1", "x2", "y2")] for row in rows], np.int32)
        corners[:, :2] -= 1
    return halves("cars196", root, paths, [int(row["class"]) for row in rows], corners)


def read_sop(root: Path) -> Parts:
    """Stanford Online Products (Song et al. 2016), already split by class.

    Raises:
      UserError: a list is malformed.
    """
    sources = []
    for part in ("train", "test"):
        path = root / f"Ebay_{part}.txt"
        rows = [line.split(maxsplit=3) for line in read_lines(path)[1:]]
        if not rows or any(len(row) != 4 or not row[1].isdigit() for row in rows):
            raise UserError(f"{path}: expected lines 'image_id class_id super_class_id path' under a heading")
        sources.append(
            FileSource(f"sop {part}", root, [row[3] for row in rows], [int(row[1]) for row in rows])
        )
    return Parts(sources[0], sources[1])


def read_inshop(root: Path) -> Parts:
    """In-shop Clothes Retrieval (DeepFashion, Liu et al. 2016): query against gallery, without cameras.

    Raises:
      UserError: the list is malformed.
    """
    path = next(
        p for p in (root / "list_eval_partition.txt", root / "Eval" / "list_eval_partition.txt") if p.exists()
    )
    base = root if (root / "img").is_dir() else root / "Img"
    rows = [line.split() for line in read_lines(path)[2:]]
    if not rows or any(len(row) != 3 or row[2] not in ("train", "query", "gallery") for row in rows):
        raise UserError(
            f"{path}: expected lines 'image_name item_id train|query|gallery' under two heading lines"
        )
    picked = {part: [row for row in rows if row[2] == part] for part in ("train", "query", "gallery")}
    test = picked["query"] + picked["gallery"]
    queries = len(picked["query"])
    return Parts(
        FileSource("inshop train", base, [r[0] for r in picked["train"]], [r[1] for r in picked["train"]]),
        FileSource("inshop test", base, [r[0] for r in test], [r[1] for r in test]),
        np.arange(queries),
        np.arange(queries, len(test)),
    )


def halves(name: str, root: Path, paths: list[str], classes: list[int], boxes: np.ndarray | None) -> Parts:
    """The first half of the classes, in the order of their numbers, for training and the rest for test."""
    first = set(sorted(set(classes))[: len(set(classes)) // 2])
    sources = []
    for part in ("train", "test"):
        rows = [i for i, c in enumerate(classes) if (c in first) == (part == "train")]
        cut = None if boxes is None else boxes[rows]
        sources.append(
            FileSource(
                f"{name} {part}", root, [paths[i] for i in rows], [classes[i] for i in rows], boxes=cut
            )
        )
    return Parts(sources[0], sources[1])


def _two_columns(path: Path) -> dict[str, str]:
    rows = [line.split(maxsplit=1) for line in read_lines(path)]
    if not rows or any(len(row) != 2 for row in rows):
        raise UserError(f"{path}: expected lines of two columns, 'image_id value'")
    return {row[0]: row[1] for row in rows}


def _same_keys(root: Path, paths: dict[str, str], other: dict[str, Any]) -> None:
    if paths.keys() != other.keys():
        raise UserError(f"{root}: the lists of images, classes and boxes do not name the same images")


def _annotations(path: Path) -> list[Any]:
    from scipy.io import loadmat

    rows = np.atleast_1d(loadmat(path, squeeze_me=True)["annotations"])
    if "class" not in (rows.dtype.names or ()):
        raise UserError(f"{path}: has no class labels; the test labels are in cars_test_annos_withlabels.mat")
    return list(rows)
