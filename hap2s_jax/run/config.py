"""Configs as values: checking overrides, saving beside a run, comparing with an existing run."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import json
import os
import pathlib
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from hap2s_jax import formats
from hap2s_jax.data.places import place
from hap2s_jax.errors import UserError
from hap2s_jax.reporting.atomic import replacing

# A ConfigDict, locked or frozen. ml_collections types an attribute as a union of everything it may be, which
# is of no use to a type checker.
Config = Any

FILE_NAME = "config.json"

# Keys that may differ between the hosts of a job. A star stands for the name of a data set.
OF_ONE_HOST = (
    "compilation_cache",
    "data.data_dir",
    "data.num_workers",
    "data.cache_dir",
    "data.cache_gb",
    "data.sources.*.data_dir",
    "evaluate.on.*.data_dir",
)

# Keys that may differ when a run is resumed. All others decide the batches or what is computed from them, so a
# resumed run would be neither the old one nor the new.
CHANGEABLE = (
    *OF_ONE_HOST,
    "steps",
    "num_devices",
    "log",
    "evaluate.every_steps",
    "evaluate.batch_size",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "checkpoint.keep_best",
    "data.cache_bytes",
    "data.max_pixels",
    "data.noise.foreign_dir",
    "data.on_unreadable",
    "pretrained.offline",
    "pretrained.cache_dir",
)


def among(key: str, names: Sequence[str]) -> bool:
    """Whether the dotted `key`, or a section that holds it, is among `names`."""
    return any(fnmatch.fnmatchcase(key, name) or fnmatch.fnmatchcase(key, f"{name}.*") for name in names)


def flatten(config: Config) -> dict[str, Any]:
    """All leaves by their dotted names; tuples become lists, as in JSON."""

    def leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if hasattr(value, "items"):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value

    return dict(leaves(config, ""))


def save(config: Config, workdir: pathlib.Path) -> None:
    """Writes the resolved config to ``workdir/config.json``, with the number of its format."""
    text = json.dumps(formats.stamped(config.to_dict()), indent=2, default=list) + "\n"
    with replacing(workdir / FILE_NAME) as temporary:
        temporary.write_text(text)


def load(workdir: str | os.PathLike[str]) -> Config:
    """Reads the resolved config of a run as today's version would have written it (see `hap2s_jax.formats`).

    Raises:
      UserError: if `workdir` holds no run, or its config cannot be read or is of a later version.
    """
    path = place(workdir) / FILE_NAME
    if not path.is_file():
        raise UserError(
            f"{workdir} holds no run: {path} is missing; give the --workdir of a run of hap2s_jax.main"
        )
    import ml_collections  # not above: the commands' help needs the base install only

    try:
        values = formats.read(path, config="")
        del values[formats.KEY]
        return ml_collections.ConfigDict(values).lock()
    except formats.NewerFormatError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise UserError(f"{path} cannot be read: {e}") from e


@contextlib.contextmanager
def written_by(workdir: str | pathlib.Path) -> Iterator[None]:
    """Context for reading the config of a run that another version of this package may have written.

    Raises:
      UserError: in place of an error about a key that the config lacks. Other errors pass through.
    """
    try:
        yield
    except (KeyError, AttributeError) as error:
        *_, innermost = traceback.walk_tb(error.__traceback__)
        if not innermost[0].f_globals.get("__name__", "").startswith("ml_collections"):
            raise
        raise UserError(
            f"{place(workdir) / FILE_NAME} is from another version of hap2s_jax: {error}; use the version that "
            "wrote it"
        ) from error


def check_resumable(config: Config, workdir: pathlib.Path) -> None:
    """Refuses to continue the run in `workdir` with a different config.

    Raises:
      UserError: naming the keys that differ and their two values.
    """
    ours = json.loads(json.dumps(flatten(config), default=list))
    theirs = flatten(load(workdir))

    differing = [
        f"{key} was {theirs.get(key, 'absent')!r}, is {ours.get(key, 'absent')!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if not among(key, CHANGEABLE) and ours.get(key, "absent") != theirs.get(key, "absent")
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run with another config ({'; '.join(differing)}); choose another --workdir, or give "
            f"the same values. Only these may change: {', '.join(CHANGEABLE)}"
        )


def nearest_key(config: Config, key: str) -> str:
    """The error text for a dotted `key` that `config` lacks, with the nearest key that it has."""
    known = list(flatten(config))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:
        leaf = key.rsplit(".", 1)[-1]
        near = [k for k in known if k.rsplit(".", 1)[-1] == leaf][:1]
    hint = f"; did you mean --config.{near[0]}?" if near else f"; known: {', '.join(known)}"
    return f"the config has no key {key!r}{hint}"
