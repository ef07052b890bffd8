"""Trees of arrays on disk, in orbax's format: single ones, and the state in a checkpoint."""

from __future__ import annotations

import logging
import math
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from hap2s_jax.data.places import is_bucket
from hap2s_jax.data.regular_files import allowed
from hap2s_jax.errors import UserError, reason
from hap2s_jax.training import digests
from hap2s_jax.training.parts import name_of

PyTree = Any


class Manager(ocp.CheckpointManager):
    """Opens a directory of checkpoints in spite of damaged ones; removes unfinished ones."""

    def __init__(self, *arguments: Any, **options: Any):
        log = logging.getLogger("absl")
        before, log.disabled = log.disabled, True  # of what is damaged orbax would quote
        try:
            super().__init__(*arguments, **options)
        except RecursionError as error:
            raise OSError("a file of JSON there is nested too deeply") from error
        finally:
            log.disabled = before
        # Or it might take a frozen trunk that is just being written for such a rest. Remove when orbax waits by itself.
        getattr(self, "_maybe_await_cleanup_tmp_directory", lambda: None)()

    def metrics(self, step: int) -> PyTree | None:
        """Figures of a checkpoint, None if they cannot be read."""
        try:
            return super().metrics(step)
        except (OSError, ValueError, RecursionError):
            return None


def write(path: pathlib.Path, tree: PyTree) -> None:
    """Writes a tree of arrays and its digests into the folder `path`, replacing its content."""
    host = jax.tree.map(np.asarray, tree)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(path, args=ocp.args.PyTreeSave(host), force=True)
    if jax.process_index() == 0:
        digests.write(path)


def read_whole(path: pathlib.Path) -> PyTree:
    """Reads a tree of `write` as NumPy arrays; None if there is none.

    Raises:
      UserError: it is damaged.
    """
    if not path.is_dir():
        return None
    try:
        if why := digests.fault(path):
            raise ValueError(why)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            tree = reader.metadata(path).item_metadata.tree
        return read(path, tree)
    except Exception as e:
        raise UserError(f"the frozen weights {path} cannot be read ({reason(e)}); copy them again") from e


def read(path: pathlib.Path, wanted: PyTree) -> PyTree:
    """Reads the arrays of `wanted`, of which shapes and dtypes count, out of the tree that lies in `path`.

    Raises:
      UserError: they would be far larger than all files there: parts that are missing would become zeros.
    """
    claimed = sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(wanted))
    if not is_bucket(path):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if claimed > allowed(size):
            raise UserError(
                f"{path} claims {claimed:,} bytes of arrays, more than its files can hold; copy it again"
            )
    abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), wanted)
    as_arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(path, args=ocp.args.PyTreeRestore(abstract, as_arrays, partial_restore=True))


def check_fits(tree: PyTree, template: PyTree, path: pathlib.Path) -> None:
    """Compares names, shapes and dtypes of what is stored with a template's: a wrong dtype would be cast silently, and
    a wrong shape fail deep inside flax.

    Args:
      tree: arrays, or orbax's record of them.
      template: a state or an encoder's variables, of the wanted structure.
      path: of the checkpoint.

    Raises:
      UserError: they differ.
    """
    average = getattr(template, "ema_params", None) or {}
    if "batch_stats" in average and "batch_stats" not in (tree.get("ema_params") or average):
        raise UserError(
            f"checkpoint {path} is of a version whose moving average held no batch statistics: it can evaluate and "
            "embed, but not continue training; start another run from these weights, with "
            f"--config.pretrained.source={path.parent.parent}"
        )
    stored, wanted = _describe(tree), _describe(template)
    differing = [k for k in {**wanted, **stored} if stored.get(k) != wanted.get(k)]
    if differing:
        name = differing[0]
        raise UserError(
            f"checkpoint {path} does not fit the config beside it: {name} is {stored.get(name, 'missing')} there and "
            f"{wanted.get(name, 'missing')} by the config"
            + (f" ({len(differing) - 1} more differ)" if len(differing) > 1 else "")
            + "; use the version of hap2s_jax that wrote it, or copy both again"
        )


def _describe(tree: PyTree) -> dict[str, str]:
    """Dtype and shape of each array by its path, in the same form for a state and for orbax's record of one."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(map(name_of, path)): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in leaves
        if hasattr(leaf, "shape") and leaf.shape is not None
    }
