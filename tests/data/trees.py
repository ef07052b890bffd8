"""Small trees in the exact layouts of the official archives, with the traps that real disks have in them."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 32, width: int = 16) -> np.ndarray:
    """A smooth picture, so that JPEG keeps it: uint8 `[height, width, 3]`."""
    coarse = np.random.default_rng(seed).integers(40, 216, (3, 3, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """The bytes of a file of that kind, of that colour mode (L, CMYK, P, RGBA, ...)."""
    buffer = io.BytesIO()
    options = {"quality": 95} if kind == "JPEG" else {}
    Image.fromarray(image).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def png16(image: np.ndarray) -> bytes:
    """A PNG with 16 bits a channel, which Pillow cannot write: every value times 257."""
    rows = (image.astype(">u2") * 257).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )


def put(path: Path, data: bytes | None = None, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(seed)) if data is None else data)


def litter(folder: Path) -> None:
    """What operating systems leave behind."""
    for name in ("Thumbs.db", ".DS_Store", "._0001_c1s1_000001_00.jpg", "readme.txt"):
        (folder / name).write_bytes(b"no image")


def market(root: Path, people: int = 4, cameras: int = 3) -> Path:
    """Market-1501: people 2, 4, ... train and 3, 5, ... test; person 12 is there only where `people` reaches it.

    In the gallery: two junk images (-1) and three distractors (0). One training identity has a single image. The
    last camera has two digits. One file name ends in .JPG.
    """
    last = 12
    names = [*range(1, cameras), last]
    for person in range(people):
        for split, identity in (
            ("bounding_box_train", 2 * person + 2),
            ("bounding_box_test", 2 * person + 3),
        ):
            for camera in names if (split, person) != ("bounding_box_train", 0) else names[:1]:
                suffix = "JPG" if camera == last else "jpg"
                put(
                    root / split / f"{identity:04d}_c{camera}s1_000{camera}51_01.{suffix}",
                    seed=100 * identity + camera,
                )
        put(root / "query" / f"{2 * person + 3:04d}_c1s1_000001_00.jpg", seed=200 * person)
    for number in range(2):
        put(root / "bounding_box_test" / f"-1_c{number + 1}s1_00000{number}_00.jpg", seed=number)
    for number in range(3):
        put(root / "bounding_box_test" / f"0000_c{number + 1}s1_00000{number}_00.jpg", seed=number)
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        litter(root / folder)
    (root / "bounding_box_train" / "empty_c1.jpg").mkdir()
    return root


def msmt17(root: Path, version: int = 1) -> Path:
    folders = ("train", "test") if version == 1 else ("mask_train_v2", "mask_test_v2")
    lists: dict[str, list[str]] = {"train": [], "val": [], "query": [], "gallery": []}
    for identity in range(3):
        for number, camera in enumerate((1, 9, 15)):
            for folder, part in zip(
                folders,
                ("val" if number == 2 else "train", "query" if number == 0 else "gallery"),
                strict=True,
            ):
                name = f"{identity:04d}/{identity:04d}_{number:03d}_{camera:02d}_0303morning_0008_0.jpg"
                put(root / folder / name, seed=identity * 10 + number)
                lists[part].append(f"{name} {identity}")
    for part, lines in lists.items():
        (root / f"list_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def cub(root: Path, classes: int = 6, images: int = 3, size: tuple[int, int] = (40, 50)) -> Path:
    lines: dict[str, list[str]] = {
        "images": [],
        "image_class_labels": [],
        "train_test_split": [],
        "bounding_boxes": [],
    }
    number = 0
    for c in range(1, classes + 1):
        for i in range(images):
            number += 1
            name = f"{c:03d}.Bird_{c}/Bird_{c}_{i:04d}.jpg"
            put(root / "images" / name, encoded(picture(number, *size)))
            lines["images"].append(f"{number} {name}")
            lines["image_class_labels"].append(f"{number} {c}")
            lines["train_test_split"].append(f"{number} {i % 2}")
            lines["bounding_boxes"].append(f"{number} 5.0 10.0 {20 + i}.0 25.0")
    for file, rows in lines.items():
        (root / f"{file}.txt").write_text("\n".join(rows) + "\n")
    return root


def cars(root: Path, old: bool = True, with_labels: bool = True) -> Path:
    from scipy.io import savemat

    rows = [(c, i) for c in range(1, 5) for i in range(2)]
    corners = [("bbox_x1", 3), ("bbox_y1", 5), ("bbox_x2", 12), ("bbox_y2", 30)]

    def struct_array(fields: list[tuple[str, list]]) -> np.ndarray:
        table = np.zeros((1, len(fields[0][1])), dtype=[(name, object) for name, _ in fields])
        for name, values in fields:
            for j, value in enumerate(values):
                table[0, j][name] = value
        return table

    if old:
        names = [f"car_ims/{n + 1:06d}.jpg" for n in range(len(rows))]
        for n, name in enumerate(names):
            put(root / name, seed=n)
        fields = [("relative_im_path", names), *((f, [v] * len(rows)) for f, v in corners)]
        fields += [("class", [c for c, _ in rows]), ("test", [i for _, i in rows])]
        savemat(root / "cars_annos.mat", {"annotations": struct_array(fields)})
        return root
    (root / "devkit").mkdir(parents=True)
    for part, file in (
        (0, "cars_train_annos"),
        (1, "cars_test_annos_withlabels" if with_labels else "cars_test_annos"),
    ):
        picked = [c for c, i in rows if i == part]
        names = [f"{n + 1:05d}.jpg" for n in range(len(picked))]
        for n, name in enumerate(names):
            put(root / ("cars_train", "cars_test")[part] / name, seed=part * 50 + n)
        fields = [*((f, [v] * len(picked)) for f, v in corners), ("fname", names)]
        if part == 0 or with_labels:
            fields.append(("class", picked))
        place = root / "devkit" if part == 0 else root
        savemat(place / f"{file}.mat", {"annotations": struct_array(fields)})
    return root


def sop(root: Path) -> Path:
    number = 0
    for part, classes in (("train", (1, 2, 10)), ("test", (11, 12, 13))):
        lines = ["image_id class_id super_class_id path"]
        for c in classes:
            for i in range(2):
                number += 1
                path = f"bicycle_final/1110857811{c:02d}_{i}.JPG"
                put(root / path, seed=number)
                lines.append(f"{number} {c} 1 {path}")
        (root / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")
    return root


def inshop(root: Path, nested: bool = False) -> Path:
    images, lists = (root / "Img", root / "Eval") if nested else (root, root)
    lines = []
    for identity in range(1, 7):
        for i in range(3):
            name = f"img/WOMEN/Dresses/id_{identity:08d}/0{i}_1_front.jpg"
            put(images / name, seed=identity * 10 + i)
            status = "train" if identity % 2 else ("query" if i == 0 else "gallery")
            lines.append(f"{name}  id_{identity:08d}  {status}")
    lists.mkdir(parents=True, exist_ok=True)
    head = [str(len(lines)), "image_name item_id evaluation_status"]
    (lists / "list_eval_partition.txt").write_text("\n".join(head + lines) + "\n")
    return root


def cuhk03_mat(root: Path, people: tuple[int, ...] = (4, 2)) -> Path:
    """`cuhk-03.mat` and the new protocol's files; person 1 of pair 1 lacks its last cell."""
    import h5py
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    names, cells = [], {}
    with h5py.File(root / "cuhk-03.mat", "w") as file:
        for detection in ("labeled", "detected"):
            pairs = file.create_dataset(detection, (1, len(people)), dtype=h5py.ref_dtype)
            for pair, count in enumerate(people):
                grid = file.create_dataset(f"{detection}{pair}", (10, count), dtype=h5py.ref_dtype)
                for person in range(count):
                    for cell in range(10):
                        key = f"cells/{detection}/{pair}/{person}/{cell}"
                        if (pair, person, cell) == (0, 0, 9):
                            # MATLAB writes an empty array as its two dimensions.
                            file[key] = np.zeros(2, np.uint64)
                        else:
                            image = picture(1000 * pair + 10 * person + cell, 20 + person, 11)
                            file[key] = image.transpose(2, 1, 0)
                            if detection == "detected":
                                names.append((pair, person, cell))
                                cells[pair, person, cell] = image
                        grid[cell, person] = file[key].ref
                pairs[0, pair] = grid.ref
        sets = file.create_dataset("testsets", (1, 2), dtype=h5py.ref_dtype)
        for number in range(2):
            file[f"sets/{number}"] = np.array([[1, 1 + number], [2, 1]], np.float64).T
            sets[0, number] = file[f"sets/{number}"].ref
    np.save(root / "cells.npy", np.array(names))
    labels = [100 * pair + person + 1 for pair, person, _ in names]
    camera = [2 * pair + cell // 5 + 1 for pair, _, cell in names]
    test = [n for n, (_, person, _) in enumerate(names) if person % 2]
    query = [n for n in test if names[n][2] in (0, 5)]
    config = {
        "filelist": np.array(
            [f"{a + 1}_{b + 1:03d}_{c // 5 + 1}_{c + 1:02d}.png" for a, b, c in names], object
        ),
        "labels": np.array(labels),
        "camId": np.array(camera),
        "train_idx": np.array([n for n in range(len(names)) if n not in test]) + 1,
        "query_idx": np.array(query) + 1,
        "gallery_idx": np.array([n for n in test if n not in query]) + 1,
    }
    savemat(root / "cuhk03_new_protocol_config_detected.mat", config)
    return root


def cuhk03_images(root: Path) -> Path:
    """The detected images of `cuhk03_mat` as torchreid takes them out, and its two files of splits."""
    from scipy.io import loadmat

    made = cuhk03_mat(root / "cuhk03_release")
    config = loadmat(made / "cuhk03_new_protocol_config_detected.mat", squeeze_me=True)
    names = [str(name) for name in config["filelist"]]
    for number, name in enumerate(names):
        put(root / "images_detected" / name, encoded(picture(number, 20, 11), "PNG"))
    (root / "images_detected" / "Thumbs.db").write_bytes(b"")

    def rows(numbers: np.ndarray) -> list[list]:
        return [[f"/data/their/reid/images_detected/{names[n]}", 0, int(names[n][6]) - 1] for n in numbers]

    new = {part: rows(config[f"{part}_idx"] - 1) for part in ("train", "query", "gallery")}
    (root / "splits_new_detected.json").write_text(json.dumps([new]))
    classic = []
    for first in ("1_001", "1_002"):
        test = rows([n for n, name in enumerate(names) if name[:5] in (first, "2_001")])
        classic.append({"train": rows(np.arange(3)), "query": test, "gallery": test})
    (root / "splits_classic_detected.json").write_text(json.dumps(classic))
    return root


def class_folders(root: Path, classes: int = 6, images: int = 4) -> Path:
    """Spaces and non-ASCII letters in the names, an empty class, a link to a folder of images elsewhere."""
    for c in range(classes):
        for i in range(images):
            put(root / f"Klasse {c} æøå" / f"bild {i} ñ.jpg", seed=c * 10 + i)
    (root / "Klasse leer").mkdir()
    litter(root)
    outside = root.parent / "elsewhere"
    for i in range(images):
        put(outside / f"{i}.png", encoded(picture(900 + i), "PNG"))
    os.symlink(outside, root / "linked", target_is_directory=True)
    return root
