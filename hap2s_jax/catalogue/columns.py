"""The columns of a store's tables, and how their values are written."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np

from hap2s_jax import extras
from hap2s_jax.errors import UserError

TEXTS = ("folder", "path", "box", "label", "camera", "time", "place", "more")

Record = dict[str, Any]


def pyarrow() -> Any:
    """pyarrow, which comes with LanceDB."""
    return extras.load("a store", "pyarrow", "gallery")


def image_schema(dim: int) -> Any:
    """The columns of the images: id, a whole number made of the content; size in bytes; texts; embedding."""
    arrow = pyarrow()
    whole, text = arrow.int64(), arrow.string()
    fields = [("id", whole), ("size", whole), *((name, text) for name in TEXTS)]
    return arrow.schema([*fields, ("embedding", arrow.list_(arrow.float32(), dim))])


def decision_schema() -> Any:
    """The columns of the log: a row for each image that a decision changed, to `label` and `status`.

    `holds` is the decision that made the image so: its own number, but of an undo that of the decision gone back to.
    """
    arrow = pyarrow()
    whole, text = arrow.int64(), arrow.string()
    fields = {"number": whole, "time": text, "by": text, "kind": text, "image": whole, "label": text}
    return arrow.schema([*fields.items(), ("status", text), ("undoes", whole), ("holds", whole)])


class Images(NamedTuple):
    """The images of an encoder.

    Attributes:
      texts: a table of pyarrow, all columns but the embeddings.
      embeddings: float32 `[n, d]`.
      kept: so many of the first ones were there before.
    """

    texts: Any
    embeddings: np.ndarray
    kept: int

    @property
    def ids(self) -> np.ndarray:
        """int64 `[n]`."""
        return np.asarray(self.texts.column("id"))


def image_id(digest: bytes) -> int:
    """The number of an image, from a digest of its content (and box)."""
    return int.from_bytes(digest[:8], "big") >> 1


def shown_id(number: int) -> str:
    """The id as people read and type it."""
    return f"{number:016x}"


def storable(text: str) -> str:
    """A text for a table, which holds UTF-8 only; file names may hold other bytes."""
    return text.encode(errors="replace").decode()


def more_of(text: str) -> Record:
    """The columns that are kept as JSON; a UserError for anything else."""
    try:
        found = json.loads(text) if text else {}
        if not (isinstance(found, dict) and all(isinstance(value, str) for value in found.values())):
            raise ValueError("no texts by name")
        return found
    except (ValueError, RecursionError) as error:
        raise UserError(f"the store is damaged: an image's further columns are {text!r:.60}") from error
