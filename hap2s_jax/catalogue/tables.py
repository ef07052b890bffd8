"""The files of a store: two kinds of LanceDB tables that are only appended to, and store.json.

``images_FINGERPRINT`` holds the images with the embeddings of one encoder; ``decisions`` what was decided about them, a
row for each image that a decision changed. An append is one transaction, so that a decision is there whole or not at
all; nothing is ever edited or deleted. store.json says which encoder's table holds, and is replaced as a whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hap2s_jax import extras, formats
from hap2s_jax.catalogue.columns import Images, Record, decision_schema, image_schema, pyarrow
from hap2s_jax.data.places import local
from hap2s_jax.data.regular_files import allowed
from hap2s_jax.errors import UserError, reason
from hap2s_jax.evaluation.inputs import DISTANCES
from hap2s_jax.reporting.atomic import holding, replacing

STATE = "store.json"
_DECISIONS = "decisions"
_PATIENCE = 60.0
_MAX_DIM = 2**16
_MOST_CHUNKS = 32


def on_disk(folder: str | os.PathLike[str]) -> pathlib.Path:
    """A store's folder.

    Raises:
      UserError: it is in a bucket.
    """
    if "://" in os.fspath(folder):
        raise UserError(f"{folder} is on no disk, where a gallery's store has to be; name a folder")
    return local(folder)


class Tables:
    """The tables of one store. It may be somebody else's, so sizes and types are checked before reading.

    Args:
      folder: of the store.

    Raises:
      UserError: there is no store, or it is damaged, or of a later version.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.state = self.read_state()
        self._database = _connect(folder)
        self._open: dict[str, Any] = {}

    @classmethod
    def create(cls, folder: pathlib.Path, encoder: Record, dim: int) -> Tables:
        """A new store for images embedded by `encoder`, as `TrainedEncoder.describe` has it, to `dim` numbers."""
        if folder.exists() and any(folder.iterdir() if folder.is_dir() else [folder]):
            raise UserError(f"{folder} already exists; give the store another name, or add to it")
        with replacing(folder / STATE) as temporary, _plainly(folder):
            database = _connect(folder)
            database.create_table(table_name(encoder["fingerprint"]), schema=image_schema(dim))
            database.create_table(_DECISIONS, schema=decision_schema())
            temporary.write_text(json.dumps(formats.stamped({"active": encoder, "earlier": []})))
        return cls(folder)

    def read_state(self) -> Record:
        """The contents of store.json: the `active` encoder and the `earlier` ones."""
        path = self.folder / STATE
        if not path.is_file():
            raise UserError(
                f"there is no store {self.folder}; python -m hap2s_jax.gallery create {self.folder} "
                "--workdir=RUN makes one"
            )
        try:
            state = formats.read(path)
            table_name(state["active"]["fingerprint"])
            if state["active"]["distance"] not in DISTANCES:
                raise ValueError(f"its distance is {state['active']['distance']!r:.40}")
            return state
        except formats.NewerFormatError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({reason(error)}); take it from a copy") from error

    def write_state(self, state: Record) -> None:
        """Replaces store.json."""
        with replacing(self.folder / STATE) as temporary:
            temporary.write_text(json.dumps(formats.stamped(state)))
        self.state = state

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Locks the store until the block ends, so that checks in it are still true when it writes.

        Raises:
          UserError: another process holds it for too long, or it cannot be written.
        """
        end = time.monotonic() + _PATIENCE
        while True:
            with holding(self.folder / "lock") as is_free:
                if is_free:
                    yield
                    return
            if time.monotonic() > end:
                raise UserError(f"another process is writing {self.folder}; wait until it ends")
            time.sleep(0.01)

    def images(self, fingerprint: str) -> Any:
        """LanceDB's table of the images embedded by one encoder, at its newest version."""
        return self._table(table_name(fingerprint))

    def add_images(self, fingerprint: str, rows: Mapping[str, Any], embeddings: np.ndarray) -> None:
        """Appends images in one transaction; creates the table if this encoder has none."""
        arrow, dim = pyarrow(), embeddings.shape[1]
        name = table_name(fingerprint)
        with _plainly(self.folder):
            if not self.has_images(fingerprint):
                self._database.create_table(name, schema=image_schema(dim), exist_ok=True)
            values = arrow.array(np.ascontiguousarray(embeddings, np.float32).reshape(-1))
            columns = {**rows, "embedding": arrow.FixedSizeListArray.from_arrays(values, dim)}
            self._table(name).add(arrow.table(columns, schema=image_schema(dim)))

    def has_images(self, fingerprint: str) -> bool:
        """Whether there is a table for this encoder."""
        return (self.folder / f"{table_name(fingerprint)}.lance").is_dir()

    def read_images(self, fingerprint: str, had: Images | None = None) -> Images:
        """All images of an encoder. If they begin with `had`, only the others are read."""
        table = self.images(fingerprint)
        kind = table.schema.field("embedding").type if "embedding" in table.schema.names else None
        dim = getattr(kind, "list_size", 0)
        self._check(table, image_schema(dim) if 0 < dim <= _MAX_DIM else None, max(dim, 1) * 4)
        arrow, count, kept = pyarrow(), table.count_rows(), 0
        if had is not None and np.array_equal(self.read_ids(fingerprint)[: len(had.ids)], had.ids):
            kept = len(had.ids)
        embeddings = _room(had.embeddings if had and kept else None, count, dim)
        schema, begin = arrow.schema([f for f in table.schema if f.name != "embedding"]), kept
        texts = [had.texts] if had and kept else [schema.empty_table()]
        with _plainly(self.folder):
            if count > kept:
                # Batch by batch into one array: two copies of all embeddings may not fit in memory.
                for batch in _newer(table, kept, ["embedding"]).to_batches():
                    values = np.asarray(batch.column("embedding").flatten()).reshape(-1, dim)
                    embeddings[begin : begin + len(values)] = values
                    begin += len(values)
                texts.append(_newer(table, kept, schema.names).to_arrow())
        found = arrow.concat_tables(texts)
        if not begin == count == len(found):
            raise UserError(f"{self.folder} is damaged: it claims {count:,} rows and holds {begin:,}")
        if begin > kept and not np.isfinite([embeddings[kept:].max(), embeddings[kept:].min()]).all():
            raise UserError(f"{self.folder} holds embeddings that are not finite; its encoder has diverged")
        if found.column("id").num_chunks > _MOST_CHUNKS:
            found = found.combine_chunks()
        return Images(found, embeddings, kept)

    def read_ids(self, fingerprint: str) -> np.ndarray:
        """Ids of an encoder's images, int64 `[n]`."""
        if not self.has_images(fingerprint):
            return np.zeros(0, np.int64)
        with _plainly(self.folder):
            return np.asarray(self.images(fingerprint).search().select(["id"]).to_arrow().column("id"))

    def read_decisions(self, after: int = 0) -> Any:
        """The rows of all decisions with greater numbers, a table of pyarrow in the order of these numbers."""
        table = self._table(_DECISIONS)
        self._check(table, decision_schema(), 1)
        with _plainly(self.folder):
            found = table.search().where(f"number > {int(after)}").to_arrow()
        return found.sort_by("number")

    def add_decision(self, rows: Mapping[str, Any]) -> None:
        """Appends the rows of one decision in one transaction."""
        with _plainly(self.folder):
            self._table(_DECISIONS).add(pyarrow().table(dict(rows), schema=decision_schema()))

    def tidy(self) -> None:
        """Joins the small files of many appends, without disturbing other processes."""
        # Another process that tidies up may have been quicker.
        with contextlib.suppress(UserError), _plainly(self.folder):
            for name in (table_name(self.state["active"]["fingerprint"]), _DECISIONS):
                self._table(name).optimize()

    def versions(self) -> tuple[str, int, int]:
        """Changes whenever the store does: the active encoder, and the tables' versions."""
        self.state = self.read_state()
        name = self.state["active"]["fingerprint"]
        return name, self.images(name).version, self._table(_DECISIONS).version

    def _table(self, name: str) -> Any:
        with _plainly(self.folder):
            if name not in self._open:
                self._open[name] = self._database.open_table(name)
            self._open[name].checkout_latest()
            return self._open[name]

    def _check(self, table: Any, schema: Any, width: int) -> None:
        """Checks columns, types and size before anything is read."""
        with _plainly(self.folder):
            if schema is None or not table.schema.equals(schema):
                raise UserError(
                    f"{self.folder} is damaged or not a store of hap2s_jax: its table has other columns"
                )
            size = sum(file.stat().st_size for file in self.folder.rglob("*.lance") if file.is_file())
            if table.count_rows() * width > allowed(size):
                raise UserError(f"{self.folder} is damaged: it claims {table.count_rows():,} rows")


def _newer(table: Any, after: int, columns: list[str]) -> Any:
    """The query for all rows but the first ones."""
    return table.search().select(columns).offset(after).limit(table.count_rows() - after)


def _room(had: np.ndarray | None, count: int, dim: int) -> np.ndarray:
    """An array for `count` embeddings that begins with the present ones; these are not copied if possible."""
    behind = None if had is None else had.base
    if isinstance(behind, np.ndarray) and count <= len(behind):
        return behind[:count]
    # Pages that were never written take no memory, so room to grow costs nothing.
    made = np.empty((max(count + count // 2, 4096), dim), np.float32)[:count]
    if had is not None:
        made[: len(had)] = had
    return made


def give_back() -> None:
    """Returns memory that LanceDB has freed to the system: glibc would keep it, a third of what was read."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def table_name(fingerprint: str) -> str:
    """The name of the table that an encoder's images are in."""
    if not (isinstance(fingerprint, str) and fingerprint.isalnum() and len(fingerprint) <= 64):
        raise ValueError(f"its fingerprint is {fingerprint!r:.40}")
    return f"images_{fingerprint}"


def _connect(folder: pathlib.Path) -> Any:
    with _plainly(folder):
        # An absolute path is never taken for an address.
        return extras.load("a store", "lancedb", "gallery").connect(str(folder.absolute()))


@contextlib.contextmanager
def _plainly(folder: pathlib.Path) -> Iterator[None]:
    """An error of LanceDB's in one line."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # LanceDB may raise anything
        # Without the line about its own source at the end of LanceDB's messages.
        raise UserError(f"{folder}: {re.sub(r', /[^ ]+[.]rs:.*', '', reason(error))}") from error
