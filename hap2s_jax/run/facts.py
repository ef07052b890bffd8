"""Facts that decide a run's numbers, as short texts. Processes compare them; a run keeps the facts of its data.

`hap2s_jax.distributed.processes.check_same` compares them among processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import hap2s_jax
from hap2s_jax.data.pixels import UnreadableImageError
from hap2s_jax.data.regular_files import read_json
from hap2s_jax.data.source import Dataset, Source
from hap2s_jax.distributed.processes import first_difference
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.run import config as configs
from hap2s_jax.run.config import Config

# Packages whose versions decide the numbers.
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "opencv-python-headless")
_SAMPLED_IMAGES = 8
DATA_FACTS = "data.json"  # in a working directory: facts of the data that its run began with


def code_facts() -> dict[str, str]:
    """Versions of the libraries that decide the numbers, and a fingerprint of this package's sources."""
    package = pathlib.Path(hap2s_jax.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    facts = {"the code of hap2s_jax": digest.hexdigest()[:12], "python": platform.python_version()}
    for library in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[f"the version of {library}"] = importlib.metadata.version(library)
    return facts


def data_facts(dataset: Dataset) -> dict[str, str]:
    """Fingerprints of a data set's parts: all labels, cameras and class names, and some of the images."""
    facts = {}
    for name in ("train", "validation", "test"):
        source = getattr(dataset, name)
        if source is not None:
            facts[f"the {name} part of {dataset.name}"] = f"{len(source)} images, {source_fact(source)}"
    for name in ("query", "gallery"):
        rows = getattr(dataset, name)
        if rows is not None:
            digest = hashlib.sha256(np.ascontiguousarray(rows, "<i8").tobytes()).hexdigest()[:12]
            facts[f"the {name} of {dataset.name}"] = f"{len(rows)} images, {digest}"
    for target in dataset.targets[1:]:
        facts |= {name: fact for name, fact in data_facts(target).items() if "train" not in name}
    return facts


def save_data_facts(facts: Mapping[str, str], folder: pathlib.Path) -> None:
    """Writes `data_facts` beside a run's config, for `changed_data`."""
    with replacing(folder / DATA_FACTS) as temporary:
        temporary.write_text(json.dumps(dict(facts), indent=2) + "\n")


def changed_data(facts: Mapping[str, str], folder: pathlib.Path) -> str | None:
    """Describes how `data_facts` differs from the facts that a run began with; None if no difference is known."""
    try:
        began = read_json(folder / DATA_FACTS)
    except (OSError, ValueError):  # the run is older than this file
        return None
    if different := first_difference(began, facts):
        name, before, now = different
        return f"{name} was {before} when the run in {folder} began, and is {now}"
    return None


def warn_of_changed_data(dataset: Dataset, folder: pathlib.Path) -> None:
    """Prints what `changed_data` finds on standard error."""
    if changed := changed_data(data_facts(dataset), folder):
        print(
            f"warning: {changed}; its weights may have seen classes that are now for testing or validation",
            file=sys.stderr,
        )


def arrays_fact(*trees: Any) -> str:
    """A fingerprint of all arrays in `trees`."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(trees):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:12]


def source_fact(source: Source) -> str:
    """A fingerprint of all labels, cameras and class names of a source, and of some of its images."""
    digest = hashlib.sha256("\0".join(source.class_names).encode(errors="surrogateescape"))
    digest.update(np.ascontiguousarray(source.labels, "<i4").tobytes())
    if source.cameras is not None:
        digest.update(np.ascontiguousarray(source.cameras, "<i4").tobytes())
    for index in np.linspace(0, len(source) - 1, min(len(source), _SAMPLED_IMAGES)).astype(int):
        try:
            digest.update(hashlib.sha256(source.read(int(index))).digest())
        except (OSError, UnreadableImageError):  # data.on_unreadable decides later what to do
            digest.update(b"unreadable")
    return digest.hexdigest()[:12]


def of_config(config: Config) -> dict[str, str]:
    """Facts that must be the same on all processes before any data are read: the config and the code."""
    shared = {k: v for k, v in configs.flatten(config).items() if not configs.among(k, configs.OF_ONE_HOST)}
    return {**{f"config.{key}": repr(value) for key, value in shared.items()}, **code_facts()}


def of_progress(step: int, finished: bool) -> dict[str, str]:
    """Facts of a run's working directory that all processes must see alike."""
    return {"the newest checkpoint": str(step), "whether it is finished": str(finished)}
