"""Writes a data set into a few large TFRecord files, which TensorFlow Datasets opens and `hap2s_jax.data.packed` reads.

Each record is an ``Example`` whose last bytes are the image's own, so that the index can say where they are. A class's
images lie side by side, since batches ask for several of a class. A file is whole or not there; beside it lies what
the index will say of it (``.rows``) until all are written, so that a run that was stopped goes on with the next file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hap2s_jax import formats
from hap2s_jax.data import packing_plan
from hap2s_jax.data.fetching import DEFAULT
from hap2s_jax.data.packed import FILE_NAME, PARTS, ROWS, read, texts
from hap2s_jax.data.packing_plan import Part
from hap2s_jax.data.places import place
from hap2s_jax.data.readers.files import Parts
from hap2s_jax.data.regular_files import read_json
from hap2s_jax.data.resized import Change
from hap2s_jax.data.source import Source
from hap2s_jax.data.tf import records
from hap2s_jax.data.tf.shards import Writer, write_file
from hap2s_jax.errors import UserError
from hap2s_jax.reporting.atomic import holding
from hap2s_jax.reporting.progress import ProgressBar

_BEGUN = "packing.json"
_LOCK = "packing.lock"


def pack(parts: Parts, name: str, options: Mapping[str, Any], output: str, change: Change) -> str:
    """Packs a data set, or goes on where packing it was stopped.

    Args:
      parts: the data set, as a reader returns it.
      name: of the data set in configs.
      options: those it was read with.
      output: a folder or a place in a bucket, new or begun before.
      change: what becomes of each image.

    Returns:
      A line on what lies there now.

    Raises:
      UserError: an image cannot be read, the place is taken, or what was written is not what was read.
    """
    root = place(output)
    plan = packing_plan.make(parts)
    packing_plan.check(plan)
    told = {"plan": packing_plan.digest(plan, parts, name, options, change.said)}
    told |= {"name": name, "options": dict(options), "change": change.said}
    with holding(root / _LOCK) as held:
        if not held:
            raise UserError(f"--output: another process packs into {root}; wait for it")
        if not _begin(root, told):
            splits = packing_plan.splits(plan, parts)
            with ProgressBar(sum(map(len, splits.values())), description="packing") as bar:
                features = records.features(plan, parts, name, boxes=change.keeps_boxes)
                writer = Writer(root, plan, features, change, bar.update)
                for split, chosen in splits.items():
                    writer.write(split, chosen)
            _finish(root, plan, parts, writer, told, boxes=change.keeps_boxes)
    return _check(root, parts, name, changed=change.call is not None)


def _begin(root: pathlib.Path, wanted: Mapping[str, Any]) -> bool:
    """Checks that the place is new, or was begun with the same data; returns whether it is finished."""
    there = {path.name for path in root.iterdir()} - {_LOCK}
    file = root / (FILE_NAME if FILE_NAME in there else _BEGUN)
    if there and file.name not in there:
        raise UserError(f"--output: {root} holds other files, such as {min(there)}; name a new place")
    if there and read_json(file).get("plan") != wanted["plan"]:
        raise UserError(
            f"--output: {root} holds another data set, or one of other options, packed; remove it, or name a new place"
        )
    if not there:
        write_file(file, json.dumps(wanted).encode())
    return FILE_NAME in there


def _finish(
    root: pathlib.Path,
    plan: Mapping[str, Part],
    parts: Parts,
    writer: Writer,
    told: Mapping[str, Any],
    *,
    boxes: bool,
) -> None:
    """Writes the index, the files for TFDS, and last `pack.json`; removes temporary files."""
    record: dict[str, Any] = {**told, "shards": writer.shards, "parts": {}, "rows": {}}
    for part, p in plan.items():
        for i, (first, j) in p.stored_as.items():
            p.rows[i] = plan[first].rows[j]
        p.rows["label"] = p.source.labels
        p.rows["camera"] = -1 if p.source.cameras is None else p.source.cameras
        record["parts"][part] = {
            "name": p.source.name,
            "has": [
                n
                for n in ("cameras", *(["boxes"] if boxes else []))
                if getattr(p.source, n, None) is not None
            ],
            "index": write_file(root / f"{part}.index", p.rows.tobytes()),
            "classes": write_file(root / f"{part}.classes", texts(p.source.class_names)),
            "origins": write_file(root / f"{part}.origins", texts(p.origins)),
        }
    for row in ROWS:
        if (chosen := getattr(parts, row)) is not None:
            record["rows"][row] = write_file(
                root / f"{row}.index", np.ascontiguousarray(chosen, "<i8").tobytes()
            )
    record |= {n: getattr(parts, n) for n in ("protocols", "is_usual", "remarks", "only_tested")}
    records.describe(root, str(told["name"]), writer.features.info, writer.sizes, writer.lengths)
    write_file(root / FILE_NAME, (json.dumps(formats.stamped(record), indent=1) + "\n").encode())
    for name in [_BEGUN, *(f"{name}.rows" for name, _ in writer.shards)]:
        with contextlib.suppress(OSError):
            (root / name).unlink()


def _check(root: pathlib.Path, parts: Parts, name: str, *, changed: bool) -> str:
    """Opens the packed data set and compares it with the original; returns a line about it."""
    copy, digest, images = read(root, name, {}, DEFAULT), hashlib.sha256(), 0
    for part in PARTS:
        ours, theirs = getattr(copy, part), getattr(parts, part)
        if (ours is None) != (theirs is None) or (ours is not None and not _alike(ours, theirs, changed)):
            raise UserError(f"{root}: its part {part} is not what was packed; remove it, and pack again")
        if ours is not None:
            images += len(ours)
            digest.update(np.ascontiguousarray(ours.digests, "<i8").tobytes() + ours.labels.tobytes())
    size = sum(size for _, size in read_json(root / FILE_NAME)["shards"]) / 1e9
    return f"{root}: {images:,} images in {size:.3g} GB, fingerprint {digest.hexdigest()[:12]}; it is as it was packed"


def _alike(ours: Any, theirs: Source, changed: bool) -> bool:
    """Whether a part has the same labels, cameras and classes, and the same images in a sample."""
    arrays = [(ours.labels, theirs.labels), (ours.cameras, theirs.cameras)]
    same = len(ours) == len(theirs) and ours.class_names == tuple(theirs.class_names)
    same = same and all(np.array_equal(a, b) if b is not None else a is None for a, b in arrays)
    if not same or changed:
        return same
    some = np.unique(np.linspace(0, len(ours) - 1, 64).astype(int)).tolist() if len(ours) else []
    return all(ours.read(i) == theirs.read(i) for i in some)
