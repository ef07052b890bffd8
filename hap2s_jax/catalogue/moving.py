"""Moving a store to another encoder."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hap2s_jax.catalogue.adding import AT_ONCE, embed
from hap2s_jax.catalogue.store import Store
from hap2s_jax.errors import UserError, reason
from hap2s_jax.reporting.progress import ProgressBar
from hap2s_jax.serving.trained import TrainedEncoder


class Moved(NamedTuple):
    """The result of moving a store: how many images were embedded again."""

    embedded: int
    total: int


def re_embed(
    store: Store,
    encoder: TrainedEncoder,
    *,
    batch_size: int | None = None,
    at_once: int = AT_ONCE,
    show_progress: bool = True,
) -> Moved:
    """Moves the store to another encoder; run again after an interruption, it goes on. The old embeddings stay.

    Images that are of no use or taken out and cannot be read any more get zeros, and are never found.

    Raises:
      UserError: an image in use cannot be read; the store uses this encoder already.
    """
    store.refresh()
    name, done = encoder.fingerprint, 0
    if store.encoder["fingerprint"] == name:
        raise UserError(
            f"{store.tables.folder} uses this encoder already (step {encoder.step} of {encoder.workdir})"
        )
    while True:
        with store.tables.writing():
            store.refresh()
            there = store.tables.read_ids(name)
            waiting = np.flatnonzero(~np.isin(store.ids, there))
            if not len(waiting):
                _switch(store, encoder)
                return Moved(done, len(store.ids))
        with ProgressBar(
            len(store.ids), len(there), "embedding", images_per_step=1, enabled=show_progress
        ) as bar:
            for begin in range(0, len(waiting), at_once):
                rows = waiting[begin : begin + at_once]
                _move(store, rows, encoder, batch_size)
                done += len(rows)
                bar.update(len(there) + begin + len(rows))


def _move(store: Store, rows: np.ndarray, encoder: TrainedEncoder, batch_size: int | None) -> None:
    columns = store.rows(rows)
    folders = [str(store.folder_of(row) or "") for row in rows]
    places = [*zip(folders, columns["path"], columns["box"], strict=True)]
    contents = dict(zip(places, columns["id"], strict=True))
    embeddings, failures = embed(encoder, places, batch_size, contents)
    for row, place, failure in zip(rows, places, failures, strict=True):
        if failure is not None and store.usable[row]:
            raise UserError(
                f"{place[1]} in {place[0]} cannot be read: {reason(failure)}; put it back, or `gallery remove` it; the "
                "same command goes on from here"
            )
    store.tables.add_images(encoder.fingerprint, columns, embeddings)


def _switch(store: Store, encoder: TrainedEncoder) -> None:
    state = store.tables.read_state()
    earlier = [e for e in (*state["earlier"], state["active"]) if e["fingerprint"] != encoder.fingerprint]
    store.tables.write_state({**state, "active": encoder.describe(), "earlier": earlier})
    store.refresh()
