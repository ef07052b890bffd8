"""Checkpoints of the training state; with `arrays` the only module that imports orbax.

A checkpoint is named by the number of completed updates and holds the state, as NumPy arrays, and a small JSON record.
Everything else (which batch comes next, every random draw) follows from the step.
"""

from __future__ import annotations

import contextlib
import logging
import math
import operator
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from hap2s_jax.data.places import is_bucket, place
from hap2s_jax.errors import Unreachable, UserError, reason
from hap2s_jax.training import arrays, digests, patience, sums

_LOG = logging.getLogger(__name__)
PyTree = Any
FORMAT = 1
FOLDER = "checkpoints"  # in a working directory
FROZEN = "frozen"  # in that folder: the arrays that no update changes


class Checkpointer:
    """Saves states asynchronously and keeps the last few and the best.

    Args:
      directory: where the checkpoints live, one folder a step.
      keep_last: how many of the newest to keep.
      keep_best: how many of the best to keep in addition.
      best_metric: the metric that says which is best (larger is better); only checkpoints saved with it compete.
      read_only: open for restoring only.
      strict: whether a damaged checkpoint is an error. Otherwise it is set aside, or if `read_only` left out, with a
        warning, and the newest whole one counts.
      checks: of this directory, begun before it is opened; they decide on `strict`.

    Raises:
      UserError: the directory cannot be opened, or `strict`.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        best_metric: str | None = None,
        read_only: bool = False,
        strict: bool = False,
        checks: digests.Checks | None = None,
    ):
        self._directory = place(directory).absolute()  # orbax takes no relative paths
        quality = operator.itemgetter("quality")
        # Not best_fn with max_to_keep: that would delete the newest checkpoint when it is not among the best, and with
        # it the point to resume from.
        best = preservation_policy.BestN(
            get_metric_fn=quality, n=keep_best, keep_checkpoints_without_metrics=False
        )
        keep = [preservation_policy.LatestN(n=keep_last), best]

        def opened() -> ocp.CheckpointManager:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=None if read_only else preservation_policy.AnyPreservationPolicy(keep),
                best_fn=quality,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._add_digests),
            )
            handlers = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
            try:
                return arrays.Manager(self._directory, options=options, item_handlers=handlers)
            except Exception as e:
                if isinstance(e, OSError) or not is_bucket(self._directory):
                    raise
                raise Unreachable(f"the checkpoints in {self._directory}", reason(e)) from e

        self._best_metric, self._saving, self._ahead = best_metric, 0, None
        self._open, self._again = opened, None
        self._checks = checks or digests.Checks(self._directory, strict=strict)
        self._manager = self._checks.open_read_only(opened) if read_only else self._checks.open_whole(opened)

    def _add_digests(self) -> None:
        """Called by orbax on one process, once all files of a checkpoint are written and before it has its name."""
        (folder,) = self._written()
        digests.write(folder, self._ahead.made(folder) if self._ahead else {})

    def _written(self) -> list[pathlib.Path]:
        """The folder of the checkpoint that is being written, if it is there."""
        # In a bucket it has its final name from the start; another file says that it is complete.
        name = f"{self._saving}" if is_bucket(self._directory) else f"{self._saving}.*tmp*"
        return list(self._directory.glob(name))

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, None without any."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint by the metric, None if none was saved with it."""
        self._wait()
        return self._manager.best_step()

    def evaluated_step(self, weights: str) -> int | None:
        """The step whose figures a run reports by its `config.evaluate.weights`, "best" or "last"; None without any.

        The newest replaces a best one that is damaged.
        """
        best = self.best_step if weights == "best" else None
        return best if best in self.steps else self.latest_step

    @property
    def steps(self) -> list[int]:
        """The steps of all whole checkpoints, ascending."""
        return sorted(set(self._manager.all_steps()) - self._checks.left_out)

    def save(self, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
        """Starts to save `state` under its own step; returns once it is copied to host memory.

        Every process must call it. A step that exists already is left as it is.

        Raises:
          UserError: this save or the one before could not be written, as on a full disk; earlier ones stay whole.
          Unreachable: the same, since a bucket does not answer.
        """
        step = int(state.step)
        record: dict[str, Any] = {"format": FORMAT, "digests": True, "metrics": dict(metrics or {})}
        quality = None
        if metrics is not None and self._best_metric is not None:
            if self._best_metric not in metrics:
                raise UserError(
                    f"checkpoint.best_metric is {self._best_metric!r}; it should be a metric that is measured: "
                    f"{', '.join(sorted(metrics))}"
                )
            value = float(metrics[self._best_metric])
            if math.isfinite(value):
                quality = {"quality": value}
            else:
                said = "checkpoint.best_metric: %s is %s at step %d; this checkpoint can never be the best"
                _LOG.warning(said, self._best_metric, value, step)
        # Copied, since the next step takes over the device's buffers, and several processes save host arrays.
        host_state = jax.tree.map(lambda x: np.array(x, copy=True), state)
        self._wait()  # for the previous save, whose digests use `_saving`
        self._saving = step
        # Of other hosts' files this one might not see at once that they have changed.
        if jax.process_count() == 1 and not is_bucket(self._directory):
            self._ahead = sums.Ahead(self._written)
        args = ocp.args.Composite(state=ocp.args.StandardSave(host_state), record=ocp.args.JsonSave(record))

        def again() -> None:
            self._manager = self._open()  # a manager that has failed once fails forever
            self._manager.save(step, args=args, metrics=quality)
            self._manager.wait_until_finished()

        self._again = again if is_bucket(self._directory) else None
        try:
            patience.bounded(lambda: self._manager.save(step, args=args, metrics=quality), self._directory)
        except Exception as e:
            self._try_again(e)

    def begin(self, step: int | None) -> None:
        """Starts to check whether a checkpoint is whole, so that restoring it later takes less time."""
        self._checks.begin(step)

    def restore(self, template: PyTree, step: int) -> PyTree:
        """Reads the state of `step` as NumPy arrays.

        Args:
          template: a state of the same structure, whose arrays give the expected shapes and dtypes.
          step: one of `steps`.

        Raises:
          DamagedError: it is damaged.
          UserError: it does not exist, or does not fit the template.
        """
        with self._reading(step):
            tree = self._manager.item_metadata(step)["state"].tree
            arrays.check_fits(tree, template, self._directory / str(step))
            abstract = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), template)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            restored = self._manager.restore(step, args=args)
        return restored["state"]

    def restore_weights(self, step: int) -> dict[str, PyTree]:
        """Reads what embedding needs from `step`, as NumPy arrays, without the run's loss, optimiser or data.

        Returns:
          ``{"params", "batch_stats", "ema_params"}`` as in a state (the last is None where the run kept no average),
          and ``"frozen"``, see `restore_frozen`.

        Raises:
          DamagedError: it is damaged.
          UserError: it does not exist, or is of another version.
        """
        with self._reading(step):
            stored = self._manager.item_metadata(step)["state"].tree
            wanted = {name: stored[name] for name in ("params", "batch_stats", "ema_params")}
            weights = arrays.read(self._directory / str(step) / "state", wanted)
        return weights | {"frozen": self.restore_frozen()}

    def save_frozen(self, variables: PyTree) -> None:
        """Saves a frozen trunk's variables, ``{"params", "batch_stats"}``, beside the steps; errors are `save`'s."""
        try:
            arrays.write(self._directory / FROZEN, variables)
        except Exception as e:
            raise self._save_error(e) from e

    def restore_frozen(self) -> PyTree:
        """The variables of `save_frozen`, as NumPy arrays; None without any. A UserError if it is damaged."""
        return arrays.read_whole(self._directory / FROZEN)

    def restore_whole(
        self, choose: Callable[[], int | None], template: PyTree = None
    ) -> tuple[int, PyTree] | None:
        """The step that `choose` names, and its state, or without a template its weights; None if it names none.

        A damaged one is left out, as `latest_step` and `evaluated_step` know then, and `choose` is asked again.
        """
        while (step := choose()) is not None:
            try:
                return step, self.restore_weights(step) if template is None else self.restore(template, step)
            except digests.DamagedError as error:
                self._checks.leave_out(step, error)
        return None

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Checks that a checkpoint exists in this format and is whole, and turns any other failure into one line."""
        self._wait()
        where = self._directory / str(step)
        if step not in self._manager.all_steps():
            raise UserError(
                f"no checkpoint of step {step} in {self._directory}; there are: {self.steps or 'none'}"
            )
        self._checks.begin(step)
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))
            if (written := found["record"].get("format")) != FORMAT:
                raise UserError(
                    f"checkpoint {where} has format {written!r:.40}, this version reads format {FORMAT}; "
                    "use the version of hap2s_jax that wrote it"
                )
            yield
            self._checks.check(step)
        except Exception as e:
            self._checks.check(step)  # a damaged checkpoint may raise anything
            if isinstance(e, UserError):
                raise
            raise UserError(
                f"checkpoint {where} cannot be read ({reason(e)}); if it is damaged, remove that folder and "
                "run again to continue from the checkpoint before it"
            ) from e

    def close(self) -> None:
        """Waits until the last save is complete."""
        self._wait()
        self._manager.close()
        self._checks.close()

    def _wait(self) -> None:
        try:
            patience.bounded(self._manager.wait_until_finished, self._directory)
        except Exception as e:
            self._try_again(e)
        finally:
            if self._ahead:
                self._ahead.end()

    def _try_again(self, error: Exception) -> None:
        """Repeats the last save, which failed, as often as that may help."""
        if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
            raise error  # another process is gone; the storage is fine
        for again in patience.tries(self._again, error, self._directory):
            try:
                patience.bounded(again, self._directory)
                return
            except Exception as e:
                error = e
        raise self._save_error(error) from error

    def _save_error(self, error: Exception) -> Exception:
        if is_bucket(self._directory) and not patience.is_refusal(error):
            return Unreachable(f"saving a checkpoint to {self._directory} failed", reason(error))
        step = self._manager.latest_step()
        good = "there is no other yet" if step is None else f"the last good one is of step {step}"
        return UserError(
            f"saving a checkpoint to {self._directory} failed: {reason(error)}; {good}; free space or permissions "
            "there and run again to continue"
        )
