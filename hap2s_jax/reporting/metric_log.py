"""A run's numbers by step: JSON lines for programs, TensorBoard event files for people, CSV for tables."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from hap2s_jax.data.bucket import BucketPath
from hap2s_jax.data.places import local_file, place
from hap2s_jax.data.regular_files import MAX_LIST, parse_json, read_bytes
from hap2s_jax.errors import Unreachable, UserError, reason
from hap2s_jax.reporting.atomic import cannot_write, replacing
from hap2s_jax.reporting.event_files import EVENT_FILES, EventFile
from hap2s_jax.reporting.mirror import Mirror
from hap2s_jax.reporting.trackers import Tracker

FILE_NAME = "metrics.jsonl"
CSV_NAME = "metrics.csv"
_ATTACHED = (".json", ".md", ".csv", ".png")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricLog:
    """Appends metrics to `workdir/metrics.jsonl`, to TensorBoard event files in `workdir`, and to trackers.

    A line is `{"step": 100, "train/loss": 0.25, ...}`, in strict JSON: other numbers become
    one of the strings "NaN", "Infinity", "-Infinity", which `read_metrics` turns back into numbers. Lines
    hold no times and no names of machines, so the log of a resumed run equals that of one never stopped, unless
    SIGTERM cut a window of averages short.
    Numbers of float32 are written with as many digits as identify them.

    When a run resumes, everything after `resume_step` is cut off, what was measured on the test classes at that step
    included, and so is a line that a crash left torn.
    The JSON lines lead: the event files are then written anew from them (with the times at which the
    points were first written), so every reader of event files sees one curve without doubled points. The
    loop must therefore write what belongs to step t before it saves checkpoint t.

    Only one process of a run may write: the others pass `enabled=False`, and every method does nothing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        resume_step: int | None = 0,
        *,
        tensorboard: bool = True,
        enabled: bool = True,
    ) -> None:
        """Opens the log.

        Args:
          workdir: the run's folder; made where it is missing.
          resume_step: completed updates of the checkpoint the run continues from; lines of later steps are
            removed. 0: the run starts, and the log is emptied. None: everything is kept (for a command
            that adds a line to a finished run).
          tensorboard: also write event files (needs tensorboardX).
          enabled: False on all processes but the first.

        Raises:
          UserError: the folder or the files cannot be written.
        """
        self._enabled = enabled
        self._sinks: list[Any] = []
        if not enabled:
            return
        folder = self._workdir = place(workdir)
        self._mirror = None
        if isinstance(folder, BucketPath):
            self._mirror = Mirror(folder, (FILE_NAME, EVENT_FILES))
            folder = self._mirror.folder
        self._path = folder / FILE_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            kept = _parse(read_bytes(self._path, MAX_LIST)) if self._path.exists() else []
        except OSError as error:
            raise cannot_write(self._path, error) from error
        if resume_step is not None:
            kept = [line for line in kept if _is_before(line, resume_step)] if resume_step > 0 else []
        # Rewritten whole even when nothing is cut: a torn last line must never be appended to.
        with replacing(self._path) as temporary:
            temporary.write_bytes(b"".join(map(_encode, kept)))
        self._last_step = max((line["step"] for line in kept), default=0)
        try:
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        if tensorboard:
            self._sinks.append(EventFile(folder, history=[_decode(line) for line in kept]))
        if self._mirror is not None:
            self._mirror.changed()

    def add(self, trackers: Iterable[Tracker]) -> None:
        """Sends metrics to these trackers too from now on; they are closed with the log."""
        for tracker in trackers if self._enabled else ():
            self._sinks.append(tracker)

    def attach_files(self) -> None:
        """Sends the files beside the log to the trackers: config, results, model card, tables and pictures."""
        if not self._enabled:
            return
        if not any(isinstance(sink, Tracker) for sink in self._sinks):
            return
        there = sorted(
            path for path in self._workdir.glob("[!.]*") if path.suffix in _ATTACHED and path.is_file()
        )
        with contextlib.ExitStack() as copies:
            paths = [copies.enter_context(local_file(path)) for path in there]
            for sink in self._sinks:
                if isinstance(sink, Tracker):
                    sink.attach(paths, self._last_step)

    def write(self, step: int, metrics: Mapping[str, Any], *, part: str = "") -> None:
        """Appends one line and hands it to the operating system.

        Args:
          step: completed updates, at least that of the line before.
          metrics: name -> number (Python, NumPy, or a JAX array of one element).
          part: where they were measured; with "test", `mAP` is logged as ``test/mAP``.

        Raises:
          TypeError: a value is not a number; ValueError: the step lies before the last one.
          UserError: the disk is full. The log stays whole: no half line is left behind.
        """
        if not self._enabled:
            return
        if self._file.closed:
            raise ValueError("the metric log is closed: write before close(), or open another MetricLog")
        step = int(step)
        if step < self._last_step:
            raise ValueError(
                f"step is {step}; it should be at least {self._last_step}, where the log stands; open the log with "
                "resume_step to cut it"
            )
        prefix = f"{part}/" if part else ""
        record = {"step": step} | {prefix + name: _number(name, value) for name, value in metrics.items()}
        line = _encode({name: _jsonable(value) for name, value in record.items()})
        size = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError as error:
            self._file.truncate(size)
            raise cannot_write(self._path, error) from error
        self._last_step = step
        now = time.time()
        for sink in self._sinks:
            sink.write(record, now)
        if self._mirror is not None:
            self._mirror.changed()

    def flush(self) -> None:
        """Forces written lines onto the disk, or into the bucket.

        Raises:
          UserError: the disk is full, or the bucket refuses. Unreachable: it does not answer.
        """
        if not self._enabled or self._file.closed:
            return
        try:
            if self._mirror is None:
                os.fsync(self._file.fileno())
            else:
                self._mirror.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self, failed: bool = False, *, flush: bool = True) -> None:
        """Closes everything; a second call does nothing.

        Args:
          failed: how trackers show the run.
          flush: first wait until all that was written is in the bucket, if it goes to one.
        """
        if not self._enabled or self._file.closed:
            return
        self._file.close()
        for sink in self._sinks:
            sink.close(failed)
        if self._mirror is not None:
            self._mirror.close(flush=flush)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None, flush=not isinstance(error, Unreachable))


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Reads `workdir/metrics.jsonl`: one dict per line with `step` (int) and the metrics, in order.

    Lines that are not whole (a run may be writing right now) are left out.

    Raises:
      UserError: there is no log in this folder.
    """
    path = place(workdir) / FILE_NAME
    try:
        content = read_bytes(path, MAX_LIST)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {reason(error)}; workdir must be the folder of a training run"
        ) from error
    return [_decode(line) for line in _parse(content)]


def write_csv(workdir: str | os.PathLike[str]) -> Path:
    """Writes `workdir/metrics.csv` from the log: a row for each step, a column for each metric, empty where none is.

    Of a metric that was logged twice at a step the later counts.

    Returns:
      Its path.

    Raises:
      UserError: there is no log in this folder, or the file cannot be written.
    """
    rows: dict[float, dict[str, float]] = {}
    for record in read_metrics(workdir):
        rows.setdefault(record["step"], {}).update(record)
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    path = place(workdir) / CSV_NAME
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(columns), lineterminator="\n")
        table.writeheader()
        table.writerows(rows.values())
    return path


def _parse(content: bytes) -> list[dict[str, Any]]:
    lines = []
    for line in content.split(b"\n"):
        try:
            record = parse_json(line)
        except ValueError:
            continue  # Torn by a crash, or the empty end.
        if isinstance(record.get("step"), int) and 0 <= record["step"] < 2**63:
            lines.append(record)
    return lines


def _encode(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def _decode(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: _NON_FINITE.get(value, math.nan) if isinstance(value, str) else value
        for name, value in record.items()
        if isinstance(value, (int, float, str))
    }


def _jsonable(value: float) -> float | str:
    if isinstance(value, int) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _is_before(line: Mapping[str, Any], step: int) -> bool:
    """Whether a line was written before the checkpoint of a step; the test comes after it."""
    return line["step"] < step or (
        line["step"] == step and not any(name.startswith("test/") for name in line)
    )


def _number(name: str, value: Any) -> float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind in "OUSMmc":
        raise TypeError(
            f"metric {name!r} is {type(value).__name__} {np.shape(value)}; it should be one number"
        )
    scalar = array.reshape(())[()]
    if array.dtype.kind in "biu":
        return int(scalar)
    if array.dtype == np.float64:
        return float(scalar)
    # Through the shortest decimal that identifies the float32: 0.1, not 0.10000000149011612.
    return float(str(np.float32(scalar)))
