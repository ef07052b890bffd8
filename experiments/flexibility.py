"""The paper's third claim: different weight functions are equally effective.

    python experiments/flexibility.py
    python experiments/flexibility.py --minutes=50

All rows share the learning rate that accuracy.py's search has chosen for HAP2S_E, and differ from its defaults (margin
0.3, hinge, embeddings of length 1) in what they are named after.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from accuracy import chosen_setting, suffix
from study import report
from study.cells import OutOfTime, Setting, Study, parser, start

from hap2s_jax import exponential, hap2s_loss, losses, polynomial
from hap2s_jax.losses import Weighting, detached


def _hardness(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Weighting:
    """A weighting from one function of hardness: the distance for positives, its negative for negatives."""
    return Weighting(function, lambda distances, mask: function(-distances, mask))


def gaussian(distances: jax.Array, mask: jax.Array) -> jax.Array:
    """Log-weights that grow with the square of the distance."""
    del mask
    return jnp.sign(distances) * distances**2 / 0.5


def proportional(distances: jax.Array, mask: jax.Array) -> jax.Array:
    """Weights d for positives and 1 / d for negatives."""
    del mask
    return jnp.sign(distances) * jnp.log(jnp.maximum(jnp.abs(distances), 1e-3))


def _rank(hardness: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(mask[None, :] & (hardness[None, :] > hardness[:, None]), axis=1)


def halving(distances: jax.Array, mask: jax.Array) -> jax.Array:
    """The hardest counts twice as much as the second hardest, and so on."""
    return -jnp.log(2.0) * _rank(distances, mask).astype(distances.dtype)


def three_hardest(distances: jax.Array, mask: jax.Array) -> jax.Array:
    """The three hardest count alike, all others nothing."""
    return jnp.where(_rank(distances, mask) < 3, 0.0, -jnp.inf).astype(distances.dtype)


def _register(name: str, weighting: Weighting) -> None:
    def loss(
        embeddings: Any,
        labels: Any,
        *,
        margin: float = 0.3,
        soft_margin: bool = False,
        distance: Any = "euclidean",
        **arguments: Any,
    ) -> Any:
        settings: dict[str, Any] = {"margin": margin, "soft_margin": soft_margin, "distance": distance}
        return hap2s_loss(embeddings, labels, weighting=weighting, **settings, **arguments)

    losses.register(name, loss)


def register_weightings() -> None:
    """Makes the weightings of this study losses that a cell can name; once in a process."""
    if "hap2s gaussian" in losses.names():
        return
    _register("hap2s gaussian", _hardness(gaussian))
    _register("hap2s proportional", _hardness(proportional))
    _register("hap2s halving", _hardness(halving))
    _register("hap2s three_hardest", _hardness(three_hardest))
    _register("hap2s_e detached", detached(exponential()))
    _register("hap2s_p detached", detached(polynomial()))


def _named(*names: str) -> list[Setting]:
    return [Setting(name, name) for name in names]


def _values(loss: str, name: str, values: Sequence[float]) -> list[Setting]:
    return [Setting(f"{loss}, {name} {value:g}", loss, {name: value}) for value in values]


def _unnormalised(loss: str, same: dict[str, float], larger: dict[str, float]) -> list[Setting]:
    overrides = {"encoder.normalize": False}
    return [
        Setting(loss, loss),
        Setting(f"{loss}, not normalised", loss, same, overrides=overrides),
        Setting(f"{loss}, not normalised, in its units", loss, larger, overrides=overrides),
    ]


def settings(unit: float) -> dict[str, list[Setting]]:
    """Title of a table -> its rows.

    Args:
      unit: how much farther apart embeddings lie that are not normalised. Those of batch normalisation have a length
        of about the root of their dimensions.
    """
    return {
        "Weight functions": _named(
            "batch_hard", "point_to_set_mean", "hap2s_e", "hap2s_p", "hap2s gaussian", "hap2s proportional",
            "hap2s halving", "hap2s three_hardest",
        ),
        "Sigma": [*_named("batch_hard"), *_values("hap2s_e", "sigma", (0.01, 0.1, 0.5, 1.0, 10.0))],
        "Alpha": [*_named("batch_hard"), *_values("hap2s_p", "alpha", (0.1, 1.0, 10.0, 100.0, 1000.0))],
        "Hinge or soft margin": [
            *_named("batch_hard"),
            *_values("hap2s_e", "margin", (0.1, 0.3, 0.6)),
            Setting("hap2s_e, soft margin", "hap2s_e", {"soft_margin": True, "margin": 0.0}),
            Setting("batch_hard, soft margin", "batch_hard", {"soft_margin": True, "margin": 0.0}),
        ],
        "Embeddings of length 1 or not": [
            *_unnormalised("batch_hard", {}, {"margin": 0.3 * unit}),
            *_unnormalised("hap2s_e", {}, {"margin": 0.3 * unit, "sigma": 0.5 * unit}),
        ],
        "Gradient through the weights": _named(
            "batch_hard", "hap2s_e", "hap2s_e detached", "hap2s_p", "hap2s_p detached",
        ),
    }  # fmt: skip


def without_defaults(setting: Setting) -> Setting:
    """The same setting by fewer words, so that "sigma 0.5" is the very cell of the default."""
    defaults = losses.hyperparameters(setting.loss)
    kept = {k: v for k, v in setting.hyperparameters.items() if defaults.get(k) != v}
    return Setting(setting.label, setting.loss, kept, setting.identification, setting.rate, setting.overrides)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains all variants, and writes the tables."""
    register_weightings()
    options = parser("HAP2S with other weight functions and parameters.", "0,1,2")
    study = Study(options.parse_args(arguments))
    seeds = [int(seed) for seed in study.options.seeds.split(",")]
    dimensions = study.plain.encoder.embedding_dim
    groups = settings(dimensions**0.5)
    if study.options.tiny:
        groups = {"Weight functions": _named("batch_hard", "hap2s halving")}

    def rows(seeds: Sequence[int]) -> dict[str, list[report.Row]]:
        chosen = chosen_setting(study, "hap2s_e")
        rate = {} if chosen is None else {"rate": chosen.rate}
        return {
            title: [
                report.collect(
                    study, s.label, None if chosen is None else without_defaults(s).but(**rate), seeds
                )
                for s in group
            ]
            for title, group in groups.items()
        }

    try:
        for count in range(1, len(seeds) + 1):
            rows(seeds[:count])
    except OutOfTime:
        print("out of time; the same command goes on")
    study.options.report_only = True
    finished = rows(seeds)
    tables = {title: (found, found[0]) for title, found in finished.items()}
    drawn = finished["Weight functions"]
    figure = report.dots(drawn, report.first_metric(drawn), "Weight functions")
    report.write(study, "flexibility" + suffix(study), tables, figure, f"python {' '.join(sys.argv)}")


if __name__ == "__main__":
    start(main)
