"""PK batches of several sets, against a simulation that draws and counts batch by batch."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from hap2s_jax.data.mixing import MixedPlan, plan
from hap2s_jax.data.pk import PKPlan
from hap2s_jax.errors import UserError

SIZES = {  # classes of each set; images of each class follow from its number
    "two": (40, 9),
    "three": (5, 17, 33),
    "six": (4, 30, 8, 12, 6, 21),
}


def _images(sizes, seed=0):
    """Labels and sets of shuffled images; a class has 2 to 7 of them."""
    counts = [2 + (7 * c + s) % 6 for s, size in enumerate(sizes) for c in range(size)]
    labels = np.repeat(np.arange(len(counts)), counts)
    sets = np.repeat(np.arange(len(sizes)), sizes)[labels]
    labels, sets = np.append(labels, [-1, -1]), np.append(sets, [0, 1])
    order = np.random.default_rng(seed).permutation(len(labels))
    return labels[order], sets[order]


def _plan(sizes, mixing, together, p, seed=3, k=3):
    labels, sets = _images(sizes)
    names = [f"set{n}" for n in range(len(sizes))]
    settings = {"mixing": mixing, "together": together, "seed": seed}
    return plan(labels, sets, names, **settings, classes_per_batch=p, images_per_class=k), labels, sets


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("mixing", ["classes", "sets", "weights"])
@pytest.mark.parametrize("together", ["mixed", "one"])
def test_batches_are_those_of_a_simulation(name, mixing, together):
    sizes, k = SIZES[name], 3
    p = 4 if together == "one" else 8
    shares = {
        "classes": np.array(sizes),
        "sets": np.ones(len(sizes)),
        "weights": 1 / (1.7 + np.arange(len(sizes))),
    }
    shares = shares[mixing] / shares[mixing].sum()
    asked = ",".join(f"set{n}={share}" for n, share in enumerate(shares)) if mixing == "weights" else mixing
    made, labels, sets = _plan(sizes, asked, together, p)
    drawn, uses, slots = collections.Counter(), collections.Counter(), np.zeros(len(sizes))
    for step in range(260):
        batch = made.batch(step)
        classes = labels[batch].reshape(p, k)
        assert (classes == classes[:, :1]).all()
        assert len({*classes[:, 0]}) == p  # no class twice
        of = sets[batch].reshape(p, k)[:, 0]
        if together == "one":
            assert len({*of}) == 1
        if isinstance(made, MixedPlan):
            # Images are dealt out by how often a class was drawn before, which is counted here.
            for number in {*of}:
                own, rows = made._plans[number], made._rows[number]
                first = labels[rows][labels[rows] >= 0].min()
                mine = classes[of == number][:, 0]
                visits = np.array([drawn[c] for c in mine])
                expected = rows[own.images(mine - first, visits)]
                assert (batch.reshape(p, k)[of == number] == expected).all()
        drawn.update(classes[:, 0].tolist())
        uses.update(batch.tolist())
        slots += np.bincount(of, minlength=len(sizes))
        if together == "mixed" and mixing != "classes":
            assert np.abs(slots - p * (step + 1) * shares).max() <= len(sizes)
        if step % 64 == 63:
            assert np.abs(slots - p * (step + 1) * shares).max() <= p * len(sizes)
            for c in range(sum(sizes)):
                mine = [uses[i] for i in np.flatnonzero(labels == c)]
                assert max(mine) - min(mine) <= 2
            for number in range(len(sizes)):
                times = [drawn[c] for c in {*labels[(sets == number) & (labels >= 0)]}]
                assert max(times) - min(times) <= (
                    1 if isinstance(made, MixedPlan) and together == "mixed" else 2
                )
    again = _plan(sizes, asked, together, p)[0]
    for step in (259, 0, 131):  # a pure function of the step
        assert (again.batch(step) == made.batch(step)).all()
    assert (_plan(sizes, asked, together, p, seed=4)[0].batch(0) != made.batch(0)).any()


@pytest.mark.parametrize("mixing", ["classes", "sets"])
@pytest.mark.parametrize("together", ["mixed", "one"])
def test_one_set_is_as_before(mixing, together):
    labels, _ = _images((20,))
    settings = {"classes_per_batch": 5, "images_per_class": 3, "seed": 2}
    made = plan(labels, None, ["own"], mixing=mixing, together=together, **settings)
    assert all((made.batch(step) == PKPlan(labels, **settings).batch(step)).all() for step in range(9))


def test_classes_of_a_set_meet_others_each_round():
    made, labels, _ = _plan((40, 7), "sets", "mixed", 8)
    met = collections.defaultdict(set)
    for step in range(1500):
        classes = {*labels[made.batch(step)]}
        for c in classes:
            met[c] |= classes
    assert min(len(found) for found in met.values()) == 47


@pytest.mark.parametrize(
    ("mixing", "together", "words"),
    [
        ("sets", "mixed", "up to 8 come from set1, which has 5; lower batch.classes"),
        ("sets", "one", "up to 16 come from set1, which has 5"),
        ("set0=1", "mixed", "a positive weight for each set such as set0=1,set1=1; found 'set0=1'"),
        ("set0=1,set1=-1", "mixed", "positive weight"),
        ("evenly", "mixed", "must be classes, sets"),
        ("sets", "apart", "batch.sets: must be one of mixed, one"),
    ],
)
def test_what_cannot_be_mixed_is_one_line(mixing, together, words):
    with pytest.raises(UserError, match=words):
        _plan((40, 5), mixing, together, 16)
