"""Opens data sets by name, wherever they are."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

import numpy as np

from hap2s_jax.data import noise, packed, registry
from hap2s_jax.data.fetching import DEFAULT, Cache
from hap2s_jax.data.places import place
from hap2s_jax.data.readers.files import Parts
from hap2s_jax.data.source import Dataset
from hap2s_jax.data.splits import split_by_class
from hap2s_jax.data.tf import has_tensorflow, is_remote
from hap2s_jax.errors import UserError, reason, unknown_name

_LOG = logging.getLogger(__name__)
_TEST_SEED = 0
_INSTALL = "pip install 'hap2s_jax[train]'"


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    cache: Cache = DEFAULT,
    **options: Any,
) -> Dataset:
    """Find a data set and take validation classes out of its training classes.

    Args:
      name: as in `hap2s_jax.data.registry`.
      data_dir: where to look; by default $TFDS_DATA_DIR or ~/tensorflow_datasets, then ./data. For "folder", the
        folder of class folders or the CSV itself; for "hf", see `hap2s_jax.data.readers.hf`. What
        `hap2s_jax.pack` packed may be in a bucket (gs://bucket/folder), as may data prepared with TFDS.
      validation_fraction: share of the training classes to validate on, 0 for none; of no effect where the data
        itself names validation images.
      seed: which classes those are. (Test classes, where the data names none, never depend on it.)
      cache: where packed images out of a bucket are kept.
      **options: of the data set, see `registry.Entry.options`.

    Raises:
      UserError: the name is unknown, the data is not there (says what to get and where to put it) or malformed.
    """
    found = registry.entry(name)
    if found.name == "emoji":
        if options:
            raise UserError(f"data.options: emoji has none, found {', '.join(sorted(options))}")
        from hap2s_jax.data import emoji

        return emoji.load()
    # Test classes are the same in every run: only validation classes, chosen among the others, follow the seed.
    parts = find_parts(found, data_dir, options, cache)
    train, validation = parts.train, parts.validation
    if validation is None:
        train, validation = split_by_class(train, validation_fraction, seed)
    if (tested := registry.num_classes(parts.test)) < 2:
        raise UserError(
            f"{found.name}{'' if data_dir is None else f' in {data_dir}'}: has {tested} test classes, and retrieval "
            "needs at least two; put images of another one among those for test"
        )
    remarks, seen = [*parts.remarks, *registry.count_warnings(found, parts)], set()
    if found.is_own:  # official splits share no class, though some number those of either side from 0
        trained = {*parts.train.class_names, *(parts.validation.class_names if parts.validation else ())}
        # The gallery of a closed split also holds classes without queries.
        asked = parts.test.labels if parts.query is None else parts.test.labels[parts.query]
        seen = (
            set()
            if parts.only_tested
            else trained & {parts.test.class_names[label] for label in np.unique(asked[asked >= 0])}
        )
    protocols = parts.protocols or found.protocols
    if seen and "closed_set" not in protocols:
        remarks.append(
            f"{len(seen):,} of the {len(parts.test.class_names):,} test classes have training or validation images "
            "too: figures are not of unseen classes"
        )
    return Dataset(
        found.name,
        train,
        validation,
        parts.test,
        parts.query,
        parts.gallery,
        protocols,
        views=parts.views,
        seen_classes=tuple(sorted(seen)),
        is_own=found.is_own,
        remarks=tuple(remarks),
    )


def with_noise(
    dataset: Dataset,
    *,
    kind: str,
    fraction: float,
    seed: int,
    foreign: str,
    foreign_dir: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    cache: Cache = DEFAULT,
) -> tuple[Dataset, noise.NoiseRecord | None]:
    """Make a share of the training images wrong on purpose; validation and test stay as they are.

    Args:
      dataset: the clean data set.
      kind: "labels" or "images", see `hap2s_jax.data.noise`; "" for none.
      fraction: share of the training images, in [0, 1].
      seed: which ones, and what becomes of them.
      foreign: the data set whose training images are the foreign ones of "images".
      foreign_dir: where that one lies; None for `data_dir`.
      data_dir: where `dataset` lies.
      cache: where packed images out of a bucket are kept.

    Returns:
      The data set, and what was done, None where nothing was.

    Raises:
      UserError: a value is out of range, or the foreign data set is the same, or not there.
    """
    if not kind:
        if fraction:
            raise UserError(
                f"data.noise.kind: must be one of {', '.join(noise.KINDS)} for a fraction of {fraction}, found none"
            )
        return dataset, None
    if kind == "labels":
        train, record = noise.flip_labels(dataset.train, fraction, seed)
    elif kind == "images":
        # Own images have the same name in every folder, but two folders are two data sets.
        same = registry.entry(foreign)
        if same.name == dataset.name and not (same.is_own and foreign_dir):
            raise UserError(
                f"data.noise.foreign: must be another data set than the one trained on, found {foreign}; name "
                "another, such as folder with data.noise.foreign_dir"
            )
        others = load(foreign, data_dir=foreign_dir or data_dir, validation_fraction=0.0, cache=cache).train
        train, record = noise.swap_images(dataset.train, others, fraction, seed)
    else:
        raise unknown_name("kind of noise (data.noise.kind)", kind, noise.KINDS)
    return dataclasses.replace(dataset, train=train), record


def find_parts(
    found: registry.Entry,
    data_dir: str | os.PathLike[str] | None,
    options: dict[str, Any],
    cache: Cache = DEFAULT,
) -> Parts:
    """A data set as its reader returns it, wherever it is; arguments and errors are `load`'s."""
    remote = os.fspath(data_dir) if data_dir is not None and is_remote(data_dir) else ""
    for base in [remote] if remote else registry.search_directories(data_dir):
        try:
            root = packed.find(base, found.name)
        except UserError:  # TensorFlow reads what TFDS prepared, without the extra "gcs"
            if found.tfds is None or not has_tensorflow():
                raise
            root = None
        if root is not None:
            _LOG.info("reading %s, packed, from %s", found.title, root)
            return packed.read(root, found.name, options, cache)
    if remote:
        return _remote_parts(found, remote, options)
    return _local_parts(found, data_dir, _TEST_SEED, options)


def _local_parts(
    found: registry.Entry, data_dir: str | os.PathLike[str] | None, seed: int, options: dict[str, Any]
) -> Parts:
    bases = registry.search_directories(data_dir)
    if found.name == "hf" and data_dir is None and options.get("path"):
        return registry.read_parts(found, None, options, seed)
    if found.is_own:
        if data_dir is None or not bases[0].exists():
            what = "a folder with a folder of images per class, or a CSV with the columns path,label"
            if found.name == "hf":
                what = "a folder of images or of parquet files (data.options.path a data set of the hub)"
            raise UserError(f"data.data_dir: must name {what}; found {data_dir}")
        return registry.read_parts(found, bases[0], options, seed)
    root = found.find(bases)
    if root is not None:
        _LOG.info("reading %s from %s", found.title, root)
        return registry.read_parts(found, root, options, seed)
    hint = ""
    if found.tfds is not None and not has_tensorflow():
        hint = f"; data prepared with TFDS would be read with TensorFlow, which is not installed: {_INSTALL}"
    elif found.tfds is not None:
        from hap2s_jax.data.tf.tfds_source import LAYOUTS, read_tfds

        builder = found.tfds.format(**{**found.options, **options})
        for base in bases:
            parts = read_tfds(builder, base)
            if parts is not None:
                _check_options_of_tfds(found, options)
                return parts
        if builder in LAYOUTS:
            hint = (
                f"; or prepare it with: tfds build {builder} --file_format=array_record --data_dir={bases[0]}"
            )
    raise UserError(found.where_to_get(bases) + hint)


def _remote_parts(found: registry.Entry, data_dir: str, options: dict[str, Any]) -> Parts:
    """From a bucket come data sets that TFDS prepared; folders of small files would be read far too slowly."""
    if found.tfds is None:
        place(data_dir)  # raises where the place is of no known kind
        raise UserError(
            f"data.data_dir: {data_dir} is not on a disk, and holds no packed data set {found.name}; pack it first: "
            f"python -m hap2s_jax.pack --name={found.name} --data_dir=... --output={data_dir}"
        )
    if not has_tensorflow():
        raise UserError(
            f"data.data_dir: {data_dir} is read with TensorFlow, which is not installed: {_INSTALL}"
        )
    from hap2s_jax.data.tf.quiet import tf
    from hap2s_jax.data.tf.tfds_source import read_tfds

    builder = found.tfds.format(**{**found.options, **options})
    try:
        parts = read_tfds(builder, data_dir)
    except (OSError, RuntimeError, tf.errors.OpError) as error:  # TFDS wraps other errors than OSError
        raise UserError(f"data.data_dir: {data_dir} cannot be read: {reason(error)}") from None
    if parts is None:
        raise UserError(
            f"data.data_dir: {data_dir} holds no {found.title} prepared with TFDS; prepare it on a disk "
            f"(tfds build {builder}) and copy the folder {builder}/ there"
        )
    _check_options_of_tfds(found, options)
    return parts


def _check_options_of_tfds(found: registry.Entry, options: dict[str, Any]) -> None:
    # Options that are part of the builder's name take effect by that choice.
    fixed = {k: v for k, v in options.items() if f"{{{k}}}" not in (found.tfds or "")}
    if any(v != found.options.get(k) for k, v in fixed.items()):
        raise UserError(f"data.options: need {found.title} as its official folder, not as TFDS data")
