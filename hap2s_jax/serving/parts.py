"""The parts of a file of embeddings that is being made.

They are kept in a folder beside it, so that an interrupted command continues where it stopped, and only one part need
be in memory.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from hap2s_jax.data.places import remove_folder
from hap2s_jax.data.regular_files import open_regular, read_bytes, read_json
from hap2s_jax.errors import UserError
from hap2s_jax.reporting.atomic import replacing

_STATE = "parts.json"
_MAX_PART = 2**33


@dataclasses.dataclass(frozen=True)
class Part:
    """Some embeddings: `rows` are their numbers in the listing; of `unreadable` the numbers and the reasons."""

    embeddings: np.ndarray
    rows: np.ndarray
    unreadable: np.ndarray
    reasons: np.ndarray


class Parts:
    """The finished parts of a file that is being made.

    Args:
      output: the file to be.
      identity: what must be the same for parts to be gone on with (weights, images, their folder).
      anew: whether parts of something else are removed.

    Raises:
      UserError: parts of something else lie there, or the folder cannot be written.
    """

    def __init__(self, output: pathlib.Path, identity: dict[str, Any], *, anew: bool = False):
        self.folder = output.with_name(output.name + ".parts")
        state = self.folder / _STATE
        if state.exists():
            try:
                found = read_json(state)
            except (OSError, ValueError):  # damaged
                found = dict.fromkeys(identity)
            # A key that is not there was not known when the parts were made.
            differing = [key for key in identity if found.get(key, identity[key]) != identity[key]]
            if not differing:
                self._drop_damaged()
                return
            if not anew:
                raise UserError(
                    f"{self.folder} holds an unfinished file that differs in its {' and '.join(differing)}; give "
                    "--overwrite to start again, or choose another --output"
                )
            self.remove()
        with replacing(state) as temporary:
            temporary.write_text(json.dumps(identity))

    @property
    def done(self) -> int:
        """The number of listed images that the finished parts cover."""
        last = self._files()[-1:]
        return int(last[0].stem.split("-")[1]) if last else 0

    def add(self, stop: int, part: Part) -> None:
        """Keeps the part that ends before image number `stop`."""
        data = io.BytesIO()
        np.savez(data, **dataclasses.asdict(part))
        digest = zlib.crc32(data.getbuffer())
        with replacing(self.folder / f"{self.done:012d}-{stop:012d}-{digest:08x}.npz") as temporary:
            temporary.write_bytes(data.getbuffer())

    def _drop_damaged(self) -> None:
        """Removes the first part that does not match the digest in its name, and all after it."""
        files = self._files()
        for number, file in enumerate(files):
            digest = file.stem.split("-")[2:]
            if digest and digest != [f"{zlib.crc32(read_bytes(file, _MAX_PART)):08x}"]:
                print(f"warning: {file} is damaged and will be computed again", file=sys.stderr)
                for damaged in files[number:]:
                    damaged.unlink()
                return

    def __iter__(self) -> Iterator[Part]:
        for file in self._files():
            with open_regular(file) as whole, np.load(whole, allow_pickle=False) as arrays:
                yield Part(**{field.name: arrays[field.name] for field in dataclasses.fields(Part)})

    def remove(self) -> None:
        """Removes the parts, once the file is complete."""
        remove_folder(self.folder)

    def _files(self) -> list[pathlib.Path]:
        return sorted(self.folder.glob("*-*.npz"))
