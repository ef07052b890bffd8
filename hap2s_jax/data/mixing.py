"""PK batches from several data sets, every batch a pure function of (seed, step)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hap2s_jax.data.draws import hash_words, permutation
from hap2s_jax.data.pk import PKPlan
from hap2s_jax.errors import UserError

TOGETHER = ("mixed", "one")
# Words that keep the uses of the seed apart; `pk` has the first four.
_SET, _STREAM, _JITTER, _TURNS = range(4, 8)
_BLOCK = 64  # batches among which the sets of "one" take turns


def plan(
    labels: np.ndarray,
    sets: np.ndarray | None,
    names: Sequence[str],
    *,
    mixing: str,
    together: str,
    classes_per_batch: int,
    images_per_class: int,
    seed: int,
) -> PKPlan | MixedPlan:
    """The plan of a config; arguments are `MixedPlan`'s, with `mixing` as in a config.

    Classes drawn from all sets alike need no plan of their own, nor does a single set.
    """
    if together not in TOGETHER:
        raise UserError(f"batch.sets: must be one of {', '.join(TOGETHER)}, found {together!r}")
    common = {"classes_per_batch": classes_per_batch, "images_per_class": images_per_class, "seed": seed}
    if sets is None or len(names) < 2:
        if mixing not in ("classes", "sets"):
            raise UserError(f"batch.mixing: {mixing!r} names weights of several data sets, and there is one")
        return PKPlan(labels, **common)
    if mixing == "classes" and together == "mixed":
        return PKPlan(labels, **common)
    labelled = labels >= 0
    counts = [len(np.unique(labels[labelled & (sets == number)])) for number in range(len(names))]
    return MixedPlan(
        labels, sets, names, weights=_weights(mixing, names, counts), together=together, **common
    )


def _weights(mixing: str, names: Sequence[str], classes: Sequence[int]) -> list[float]:
    """The sets' weights from "classes", "sets", or text such as "market1501=2,dukemtmc=1"."""
    if mixing in ("classes", "sets"):
        found = dict(zip(names, classes if mixing == "classes" else [1] * len(names), strict=True))
    else:
        try:
            pairs = (part.split("=") for part in mixing.split(","))
            found = {name.strip(): float(weight) for name, weight in pairs}
            if not (all(0 < weight < math.inf for weight in found.values()) and found.keys() == {*names}):
                raise ValueError
        except ValueError:
            wanted = ",".join(f"{name}=1" for name in names)
            raise UserError(
                f"batch.mixing: must be classes, sets, or a positive weight for each set such as {wanted}; found "
                f"{mixing!r}"
            ) from None
    return [found[name] / sum(found.values()) for name in names]


class MixedPlan:
    """Chooses the images of each batch from several sets with given shares.

    Together "mixed": the P classes of a batch are shared out among the sets, now rounded down and now up, so that after
    any number of batches no set is further from its share than there are sets. A set deals out its classes one after
    another, in another order in every round, and never the same one twice in a batch.

    Together "one": a batch comes from one set. In each 64 batches every set has its share of them, in random order, and
    those of a set are the batches of a `PKPlan` of its own.

    The images of a class are dealt out as `PKPlan` does: the uses of two of them differ by at most two.

    Args:
      labels: `[N]` integers, -1 for images that are never drawn; no class is in two sets.
      sets: `[N]` the set of each image, 0 to S - 1.
      names: of the S sets, for messages.
      weights: the share of each set, adding up to 1.
      together: "mixed" or "one".
      classes_per_batch, images_per_class, seed: see `PKPlan`.

    Raises:
      UserError: a set has fewer classes than a batch may ask of it.
    """

    def __init__(
        self,
        labels: np.ndarray,
        sets: np.ndarray,
        names: Sequence[str],
        *,
        weights: Sequence[float],
        together: str,
        classes_per_batch: int,
        images_per_class: int,
        seed: int,
    ):
        self.classes_per_batch, self.images_per_class, self.seed = classes_per_batch, images_per_class, seed
        self._names, self._weights, self._together = list(names), list(weights), together
        self._rows = [np.flatnonzero(sets == number) for number in range(len(names))]
        most = [classes_per_batch] * len(names) if together == "one" else _most(weights, classes_per_batch)
        self._gaps, self._seeds, self._plans = most, [], []
        for number, rows in enumerate(self._rows):
            classes = len(np.unique(labels[rows][labels[rows] >= 0]))
            if classes < most[number]:
                raise UserError(
                    f"batch.classes: of the {classes_per_batch} classes of a batch up to {most[number]} come from "
                    f"{names[number]}, which has {classes}; lower batch.classes, or its weight in batch.mixing"
                )
            own = int(hash_words(seed, _SET, number)[0])
            self._seeds.append(own)
            each = classes_per_batch if together == "one" else 1
            self._plans.append(
                PKPlan(labels[rows], classes_per_batch=each, images_per_class=images_per_class, seed=own)
            )
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    @property
    def batch_size(self) -> int:
        """P * K, the size of the global batch."""
        return self.classes_per_batch * self.images_per_class

    @property
    def num_classes(self) -> int:
        """Classes that can be drawn."""
        return sum(plan.num_classes for plan in self._plans)

    def describe(self) -> str:
        """One line for the log: sizes, and the share of each set."""
        shares = ", ".join(
            f"{weight:.1%} {name} ({plan.num_classes} classes)"
            for name, weight, plan in zip(self._names, self._weights, self._plans, strict=True)
        )
        how = "each from one set" if self._together == "one" else "mixed"
        line = f"{self.classes_per_batch} classes x {self.images_per_class} images a batch, {how}: {shares}"
        short = sum(plan.short_classes for plan in self._plans)
        return line + (
            f"; {short} classes have fewer than {self.images_per_class} images and repeat" if short else ""
        )

    def batch(self, step: int) -> np.ndarray:
        """The indices of batch `step`, int64 `[P * K]`, the K images of a class side by side.

        Raises:
          ValueError: `step` is negative.
        """
        if step < 0:
            raise ValueError(f"step: must be 0 or more, found {step}")
        if self._together == "one":
            number, turn = self._turn(int(step))
            return self._rows[number][self._plans[number].batch(turn)]
        before, after = (
            share_out(self._weights, n * self.classes_per_batch) for n in (int(step), int(step) + 1)
        )
        taken = []
        for number, plan in enumerate(self._plans):
            places = np.arange(before[number], after[number])
            rounds = places // plan.num_classes
            classes = np.array(
                [self._order(number, r)[p % plan.num_classes] for r, p in zip(rounds, places, strict=True)],
                np.int64,
            )
            if len(classes):
                taken.append(self._rows[number][plan.images(classes, rounds)].reshape(-1))
        return np.concatenate(taken)

    def _turn(self, step: int) -> tuple[int, int]:
        """The set of a batch, and how many batches of that set come before it."""
        block, place = divmod(step, _BLOCK)
        before, after = (np.array(share_out(self._weights, n * _BLOCK)) for n in (block, block + 1))
        turns = np.repeat(np.arange(len(before)), after - before)[
            permutation(_BLOCK, self.seed, _TURNS, block)
        ]
        number = int(turns[place])
        return number, int(before[number] + np.sum(turns[:place] == number))

    def _order(self, number: int, turn: int) -> np.ndarray:
        """The order of a set's classes in a round."""
        if (found := self._orders.get((number, turn))) is None:
            found = _order(self._plans[number].num_classes, self._gaps[number], turn, self._seeds[number])
            # A tuple of the newest two, so that threads see a whole dictionary.
            self._orders = {
                **dict(list(self._orders.items())[-2 * len(self._plans) :]),
                (number, turn): found,
            }
        return found


def share_out(weights: Sequence[float], total: int) -> list[int]:
    """Splits `total` into whole numbers in the ratio of `weights`; none shrinks as `total` grows.

    The share of the first set is rounded down, then that of each next one out of the rest.
    """
    shares, left, rest = [], total, 1.0
    for weight in weights[:-1]:
        shares.append(math.floor(left * min(1.0, weight / rest) + 1e-9))
        left, rest = left - shares[-1], rest - weight
    return [*shares, left]


def _most(weights: Sequence[float], total: int) -> list[int]:
    """The most that `total` more can add to each of `share_out`'s numbers."""
    most, left, rest = [], total, 1.0
    for weight in weights[:-1]:
        share = min(1.0, weight / rest)
        most.append(math.ceil(left * share - 1e-9))
        left, rest = left - math.floor(left * share + 1e-9), rest - weight
    return [*most, left]


def _order(count: int, gap: int, turn: int, seed: int) -> np.ndarray:
    """0 to `count` - 1 in the order of round `turn`; none comes again within `gap` places, in the next round either."""
    if count >= 3 * (gap - 1):
        order = permutation(count, seed, _STREAM, turn)
        if turn and gap > 1:
            # Members of the last round's end must not begin this one; the end of this round stays as it is.
            closed = permutation(count, seed, _STREAM, turn - 1)[count - gap + 1 :]
            head, tail = order[: count - gap + 1], order[count - gap + 1 :]
            first = head[~np.isin(head, closed)][: gap - 1]
            order = np.concatenate([first, head[~np.isin(head, first)], tail])
        return order
    # Few classes, most of them in every batch: places on a fixed ring, shifted at random by less than the slack.
    shift = (
        hash_words(seed, _JITTER, turn, np.arange(count)).astype(np.float64) / 2.0**64 * ((count - gap) // 2)
    )
    ring = permutation(count, seed, _STREAM, 0)
    return ring[np.argsort(np.arange(count) + shift[ring], kind="stable")]
