"""Judges the encoder by people's decisions: would it have made them, and which threshold would have been right?

Each image that was added without a label and given one later is a query again, in the gallery as it was when it first
got one, with what the others are called today.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from hap2s_jax.catalogue.state import State
from hap2s_jax.distances import directions, distances_between, products, scores, squares
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation.bounds import upper_bound
from hap2s_jax.evaluation.thresholds import ErrorRates, rates_of
from hap2s_jax.serving import calibrating

_AT_ONCE = 64


class Reviewed(NamedTuple):
    """The queries of the past.

    Attributes:
      rows: `[r]` of the store.
      numbers: `[r]` of the decisions that named them, ascending.
      right, wrong: `[r]` distances to the nearest image of the same individual, and of another, at that time; infinite
        without any. A query without `right` was a new individual.
    """

    rows: np.ndarray
    numbers: np.ndarray
    right: np.ndarray
    wrong: np.ndarray

    def rank_1(self) -> tuple[int, int]:
        """(how many, of how many): known individuals whose own image was the nearest."""
        known = np.isfinite(self.right)
        return int((self.right < self.wrong)[known].sum()), int(known.sum())


def replay(store: State) -> Reviewed:
    """Asks the store's encoder again for everything that people have decided."""
    born = _named_by(store)
    rows = np.flatnonzero(store.known & (born > 0))
    rows = rows[np.argsort(born[rows], kind="stable")]
    gallery = np.flatnonzero(store.known)
    distance = store.encoder["distance"]
    keys = jnp.asarray(_comparable(store.embeddings[gallery], distance))
    lengths = squares(keys)
    right, wrong = np.full(len(rows), np.inf), np.full(len(rows), np.inf)
    for begin in range(0, len(rows), _AT_ONCE):
        asking = rows[begin : begin + _AT_ONCE]
        queries = jnp.asarray(_comparable(store.embeddings[asking], distance))
        score = np.asarray(scores(products(queries, keys), lengths))
        there = born[gallery][None] < born[asking][:, None]
        same = store.labels[gallery][None] == store.labels[asking][:, None]
        for out, wanted in ((right, there & same), (wrong, there & ~same)):
            nearest = gallery[np.where(wanted, score, np.inf).argmin(axis=1)]
            apart = distances_between(store.embeddings[asking], store.embeddings[nearest], distance)
            out[begin : begin + len(asking)] = np.where(wanted.any(axis=1), apart, np.inf)
    return Reviewed(rows, born[rows], right, wrong)


def _named_by(store: State) -> np.ndarray:
    """The number of the decision that first gave an image a label, 0 where it came with one, int64 `[n]`."""
    born = np.zeros(len(store.ids), np.int64)
    log = store.log
    naming = np.asarray(log.column("label").fill_null("")) != ""
    places, found = store.places(np.asarray(log.column("image")))
    numbers = np.asarray(log.column("number"))[found]
    naming = naming[found] & (store.first_labels[places] == 0)
    # The earliest is written last.
    born[places[naming][::-1]] = numbers[naming][::-1]
    return born


def _comparable(rows: np.ndarray, distance: str) -> np.ndarray:
    """Rows whose Euclidean order is that of `distance`."""
    return directions(rows) if distance == "cosine" else rows


def error_rates(store: State, reviewed: Reviewed) -> ErrorRates | None:
    """Error rates over thresholds of what people decided; None where nothing can be said."""
    try:
        rates = rates_of(reviewed.right, reviewed.wrong, store.labels[reviewed.rows], int(store.known.sum()))
    except ValueError:
        return None
    return dataclasses.replace(rates, data=f"{len(reviewed.rows):,} reviewed decisions")


def choose_threshold(
    store: State, wanted: str = "auto", false_accepts: float | None = None
) -> tuple[float | None, str]:
    """The threshold for a store, and in words where it comes from.

    By default from the reviewed decisions, where there are enough for it, else from the run's validation classes.

    Args:
      store: whose decisions count.
      wanted: "auto", "none" or a distance.
      false_accepts: the share that is tolerated; by default the threshold of equal errors.

    Raises:
      UserError: see `calibrating.choose_threshold`.
    """
    few = ""
    if wanted == "auto" and (rates := error_rates(store, replay(store))) is not None:
        try:
            found = rates.default() if false_accepts is None else rates.for_false_accepts(false_accepts)
            if found is not None:
                return found, f"threshold {found:.4f}: on {rates.data} {rates.describe(found)}"
            few = f"; reviewed decisions: {rates.too_few()}"
        except ValueError as error:
            few = f"; reviewed decisions: {error}"
    workdir = pathlib.Path(str(store.encoder.get("workdir")))
    threshold, words = calibrating.choose_threshold(
        workdir, store.encoder["fingerprint"], wanted, false_accepts
    )
    return threshold, words + few


def check_promise(reviewed: Reviewed, threshold: float, since: int) -> tuple[int, int, float, float]:
    """The record of a threshold that was chosen after decision number `since`.

    Returns:
      (count within, count, lower bound, upper bound): of the first images of new individuals since then, how many lay
      within the threshold of another individual; and bounds of that share, each wrong with 5 % probability.
    """
    later = (reviewed.numbers > since) & ~np.isfinite(reviewed.right) & np.isfinite(reviewed.wrong)
    count, accepted = int(later.sum()), int((reviewed.wrong[later] <= threshold).sum())
    if not count:
        return 0, 0, 0.0, 1.0
    return accepted, count, 1 - upper_bound(count - accepted, count), upper_bound(accepted, count)


def promise(store: State, threshold: float, share: float | None) -> None:
    """Keeps the threshold in the store, to be checked against what is decided from now on."""
    kept = {"threshold": threshold, "share": share, "number": store.last}
    with store.tables.writing():
        state = store.tables.read_state()
        store.tables.write_state({**state, "promise": {**kept, "fingerprint": store.encoder["fingerprint"]}})


def read_promise(store: State) -> tuple[float, float | None, int] | None:
    """(threshold, share, number of the last decision before it) that `promise` kept; None without one."""
    kept = store.tables.read_state().get("promise") or {}
    if kept.get("fingerprint") != store.encoder["fingerprint"]:
        return None
    try:
        share = kept["share"]
        return float(kept["threshold"]), None if share is None else float(share), int(kept["number"])
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{store.tables.folder}: its threshold is damaged; set it again with `gallery threshold`"
        ) from None


def kept_promise(store: State) -> str:
    """The record of the threshold that was kept last, in words; "" without one."""
    if (kept := read_promise(store)) is None:
        return ""
    threshold, share, since = kept
    accepted, count, low, high = check_promise(replay(store), threshold, since)
    promised = "" if share is None else f"; {share:.1%} at most were promised"
    return (
        f"threshold {threshold:.4f} since decision {since}: {accepted} of {count} new individuals lay within it "
        f"({low:.1%} to {high:.1%} with 90% confidence{promised})"
    )
