"""TensorBoard event files through tensorboardX's protocol buffers, so that TensorFlow is never loaded.

tensorboardX's own `SummaryWriter` is not used: it hands events to a queue that its `flush` does not empty, so
that a killed run loses points, and it names files by whole seconds, so that two writers can overwrite
one another.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hap2s_jax.data.places import place
from hap2s_jax.data.regular_files import MAX_LIST, RefusedError, read_bytes
from hap2s_jax.reporting.atomic import cannot_write, replacing

_SUFFIX = "hap2s_jax"
EVENT_FILES = f"events.out.tfevents.*.{_SUFFIX}"


class EventFile:
    """One event file in `folder`; it replaces the event files that earlier runs of this class left there."""

    def __init__(self, folder: Path, history: Iterable[Mapping[str, float]] = ()) -> None:
        """Writes `history` (records with their "step") to a new file, removes the old ones and stays open.

        A point keeps the time of the old event of the same step; points without one get the present time.
        """
        messages = _messages()
        old = sorted(folder.glob(EVENT_FILES))
        now = time.time()
        times = {event.step: event.wall_time for path in old for event in read_events(path)}
        # A running TensorBoard goes on to the file whose name sorts next, hence the time in the name.
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{_SUFFIX}"
        with replacing(self._path) as temporary, temporary.open("wb") as file:
            file.write(_framed(messages.Event(wall_time=now, file_version="brain.Event:2")))
            # Tells a running TensorBoard to forget the points of the removed files.
            start = messages.SessionLog(status=messages.SessionLog.START)
            file.write(_framed(messages.Event(wall_time=now, step=0, session_log=start)))
            for record in history:
                file.write(_framed(_event(record, times.get(int(record["step"]), now))))
        try:
            for path in old:
                path.unlink()
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def write(self, record: Mapping[str, float], wall_time: float) -> None:
        """Appends the record's numbers at its "step"; `wall_time` in seconds since 1970."""
        try:
            self._file.write(_framed(_event(record, wall_time)))
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self, failed: bool = False) -> None:
        """Closes the file; whether the run failed is not written."""
        del failed
        self._file.close()


def read_events(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Yields the `Event` messages of an event file, up to its end or to where a crash tore it."""
    from google.protobuf.message import DecodeError

    messages = _messages()
    try:
        content = read_bytes(place(path), MAX_LIST)
    except RefusedError:  # whatever somebody put there
        return
    position = 0
    while position + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, position)
        body = content[position + 12 : position + 12 + length]
        position += 12 + length + 4
        if position > len(content):
            return
        with contextlib.suppress(DecodeError):
            yield messages.Event.FromString(body)


def _event(record: Mapping[str, float], wall_time: float) -> Any:
    messages = _messages()
    numbers = {tag: float(value) for tag, value in record.items() if tag != "step"}
    values = [messages.Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
    summary = messages.Summary(value=values)
    return messages.Event(wall_time=wall_time, step=int(record["step"]), summary=summary)


def _messages() -> Any:
    """The message classes by name. They are made at run time, so type checkers cannot see them."""
    event, summary = (
        importlib.import_module(f"tensorboardX.proto.{name}_pb2") for name in ("event", "summary")
    )
    return SimpleNamespace(Event=event.Event, SessionLog=event.SessionLog, Summary=summary.Summary)


def _framed(event: Any) -> bytes:
    """The TFRecord frame: length, its masked CRC32C, the message, its masked CRC32C."""
    from tensorboardX.record_writer import masked_crc32c

    body = event.SerializeToString()
    length = struct.pack("<Q", len(body))
    return length + struct.pack("<I", masked_crc32c(length)) + body + struct.pack("<I", masked_crc32c(body))
