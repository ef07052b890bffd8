"""Records of images as TensorFlow Datasets reads them, and their description for it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hap2s_jax.data import registry
from hap2s_jax.data.packing_plan import Part
from hap2s_jax.data.readers.files import Parts
from hap2s_jax.data.source import Source
from hap2s_jax.data.tf.quiet import tf
from hap2s_jax.distributed import signals
from hap2s_jax.errors import shown
from hap2s_jax.reporting.atomic import replacing

_OURS = ("image", "label", "camera", "box", "path")


class Features:
    """The features of TFDS, and a record of each image.

    Args:
      info: TFDS's own.
      labels: part -> the class's number there -> its number in TFDS.
      attributes: part -> name of a feature -> its texts.
    """

    def __init__(self, info: Any, labels: dict[str, np.ndarray], attributes: dict[str, dict[str, list[str]]]):
        self.info, self._labels, self._attributes = info, labels, attributes

    def record(
        self, plan: Mapping[str, Part], part: str, index: int, image: bytes, box: np.ndarray | None
    ) -> bytes:
        """A record that ends with the image."""
        p = plan[part]
        label = int(p.source.labels[index])
        values: dict[str, Any] = {
            "label": [int(self._labels[part][label]) if label >= 0 else -1],
            "camera": [-1 if p.source.cameras is None else int(p.source.cameras[index])],
            "box": [0, 0, 0, 0] if box is None else box.tolist(),
            "path": [p.origins[index].encode(errors="surrogateescape")],
            **{
                n: [column[index].encode(errors="surrogateescape")]
                for n, column in self._attributes[part].items()
            },
        }
        # Two concatenated messages are one message with the fields of both.
        return _example({n: v for n, v in values.items() if n in self.info}) + _example({"image": [image]})


def _example(values: Mapping[str, Any]) -> bytes:
    features = {}
    for name, value in values.items():
        if isinstance(value[0], bytes):
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
        else:
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=value))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def features(plan: Mapping[str, Part], parts: Parts, name: str, *, boxes: bool) -> Features:
    """The features of a data set; without boxes where images are cut to them."""
    import tensorflow_datasets as tfds

    trained = {*parts.train.class_names} | {*(parts.validation.class_names if parts.validation else ())}
    # Official splits share no class, though some number those of either side from 0.
    apart = not registry.entry(name).is_own and bool(trained & {*parts.test.class_names})
    names: dict[str, int] = {}
    labels = {}
    for part, p in plan.items():
        prefix = ("test/" if part == "test" else "train/") if apart else ""
        labels[part] = np.array(
            [names.setdefault(prefix + shown(c), len(names)) for c in p.source.class_names], int
        )
    attributes = {part: _attributes(p.source) for part, p in plan.items()}
    texts_of = dict.fromkeys(n for columns in attributes.values() for n in columns)
    info = {
        "image": tfds.features.Image(doc="As it was, or as it was resized."),
        "label": tfds.features.ClassLabel(names=list(names)),
        "path": tfds.features.Text(doc="The file it was."),
        **{n: tfds.features.Text() for n in texts_of},
    }
    if any(p.source.cameras is not None for p in plan.values()):
        info["camera"] = tfds.features.Scalar(np.int64, doc="Below 0 where it is not known.")
    if boxes and any(p.boxes is not None for p in plan.values()):
        info["box"] = tfds.features.Tensor(
            shape=(4,), dtype=np.int64, doc="Left, top, right, bottom; the last two exclusive."
        )
    for part, columns in attributes.items():
        attributes[part] |= {n: [""] * len(plan[part].rows) for n in texts_of if n not in columns}
    return Features(info, labels, attributes)


def _attributes(source: Source) -> dict[str, list[str]]:
    """Further columns of a CSV, with names that are not taken."""
    columns: dict[str, list[str]] = getattr(source, "attributes", {})
    return {f"{n}_name" if n in _OURS else shown(n).replace("/", "_"): c for n, c in columns.items()}


def describe(
    root: pathlib.Path,
    name: str,
    info: Mapping[str, Any],
    sizes: Mapping[str, int],
    lengths: Mapping[str, list[int]],
) -> None:
    """Writes what TFDS's `builder_from_directory` reads.

    Args:
      root: the folder.
      name: of the data set.
      info: its features.
      sizes: bytes of each file.
      lengths: split -> images in each of its files.
    """
    import tensorflow_datasets as tfds
    from etils import epath

    with signals.temporary_folder() as folder:
        where, infos = epath.Path(folder), []
        for file in sizes:  # it looks at the names only
            (where / file).touch()
        for split, images in lengths.items():
            template = tfds.core.ShardedFileTemplate(
                data_dir=where,
                dataset_name=name,
                split=split,
                filetype_suffix="tfrecord",
                template="{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
            )
            size = sum(sizes[f"{split}.tfrecord-{n:05d}"] for n in range(len(images)))
            split_info = tfds.core.SplitInfo(
                name=split, shard_lengths=images, num_bytes=size, filename_template=template
            )
            infos.append(split_info)
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=tfds.features.FeaturesDict(info),
            split_infos=infos,
            filename_template=infos[0].filename_template,
            check_data=False,  # there is no data here to check
            description="Packed by hap2s_jax.pack.",
        )
        for file in pathlib.Path(folder).iterdir():
            if file.name not in sizes:
                with replacing(root / file.name) as temporary:
                    temporary.write_bytes(file.read_bytes())
