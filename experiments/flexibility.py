"""The paper's third claim: different weight functions are equally effective.

    python experiments/flexibility.py
    python experiments/flexibility.py --minutes=50

Every weight function has a search over learning rates of its own, as in accuracy.py. What is varied of one loss (sigma,
alpha, the margin, the norm of the embeddings, the gradient) trains at the rate that accuracy.py's search has chosen for
that loss, and differs from its defaults (margin 0.3, hinge, embeddings of length 1) in what it is named after. All are
compared with batch-hard at the best setting of its search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from accuracy import chosen_setting, suffix
from study import figures, report
from study.cells import Setting, Study, parser, start
from study.rows import collect
from study.search import search

from hap2s_jax import exponential, hap2s_loss, hardest, losses, polynomial, ranked
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


# What a cell can name beside the library's losses.
WEIGHTINGS = {
    "hap2s gaussian": _hardness(gaussian),
    "hap2s proportional": _hardness(proportional),
    "hap2s halving": ranked(0.5),
    "hap2s three_hardest": hardest(3),
}


def _loss_of(weighting: Weighting) -> Callable[..., Any]:
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

    return loss


def _hap2s_e_detached(embeddings: Any, labels: Any, *, sigma: float = 0.5, **arguments: Any) -> Any:
    return hap2s_loss(embeddings, labels, weighting=detached(exponential(sigma)), **arguments)


def _hap2s_p_detached(embeddings: Any, labels: Any, *, alpha: float = 10.0, **arguments: Any) -> Any:
    return hap2s_loss(embeddings, labels, weighting=detached(polynomial(alpha)), **arguments)


def register_weightings() -> None:
    """Makes the weightings of this study losses that a cell can name; once in a process."""
    if "hap2s gaussian" in losses.names():
        return
    plain = _loss_of(hardest())
    for name, weighting in WEIGHTINGS.items():
        losses.register(name, _loss_of(weighting))
    losses.register("hap2s_e detached", _hap2s_e_detached, like=plain)
    losses.register("hap2s_p detached", _hap2s_p_detached, like=plain)


# A row: how to find what it trains; None while a search that it hangs on is unfinished.
Variant = Callable[[Study], Setting | None]


def _chosen(*names: str) -> dict[str, Variant]:
    """Losses at the best setting of accuracy.py's search."""
    return {name: lambda study, name=name: chosen_setting(study, name) for name in names}


def _searched(*names: str) -> dict[str, Variant]:
    """Losses at their defaults and the best of the learning rates, by a search of their own."""
    return {name: lambda study, name=name: search(study, Setting(name, name), ()) for name in names}


def _at_rate_of(name: str, *settings: Setting) -> dict[str, Variant]:
    """Settings at the learning rate that accuracy.py's search has chosen for a loss."""

    def variant(study: Study, setting: Setting) -> Setting | None:
        chosen = chosen_setting(study, name)
        return None if chosen is None else without_defaults(setting).but(rate=chosen.rate)

    return {s.label: lambda study, s=s: variant(study, s) for s in settings}


def _values(loss: str, name: str, values: Sequence[float]) -> dict[str, Variant]:
    return _at_rate_of(loss, *(Setting(f"{loss}, {name} {value:g}", loss, {name: value}) for value in values))


def _soft(loss: str) -> Setting:
    return Setting(f"{loss}, soft margin", loss, {"soft_margin": True, "margin": 0.0})


def _unnormalised(loss: str, same: dict[str, float], larger: dict[str, float]) -> dict[str, Variant]:
    overrides = {"encoder.normalize": False}
    return _at_rate_of(
        loss,
        Setting(f"{loss}, hinge", loss),
        Setting(f"{loss}, hinge, not normalised", loss, same, overrides=overrides),
        Setting(f"{loss}, hinge, not normalised, in its units", loss, larger, overrides=overrides),
    )


def variants(unit: float) -> dict[str, dict[str, Variant]]:
    """Title of a table -> label of a row -> what it trains. The first row is what the others are compared with.

    Args:
      unit: how much farther apart embeddings lie that are not normalised. Those of batch normalisation have a length
        of about the root of their dimensions.
    """
    baseline = _chosen("batch_hard")
    return {
        "Weight functions": {
            **_chosen("batch_hard", "point_to_set_mean", "hap2s_e", "hap2s_p"),
            **_searched("hap2s gaussian", "hap2s proportional", "hap2s halving", "hap2s three_hardest"),
        },
        "Sigma": baseline | _values("hap2s_e", "sigma", (0.01, 0.1, 0.5, 1.0, 10.0)),
        "Alpha": baseline | _values("hap2s_p", "alpha", (0.1, 1.0, 10.0, 100.0, 1000.0)),
        "Hinge or soft margin": {
            **baseline,
            **_at_rate_of("batch_hard", Setting("batch_hard, hinge", "batch_hard"), _soft("batch_hard")),
            **_values("hap2s_e", "margin", (0.1, 0.3, 0.6)),
            **_at_rate_of("hap2s_e", _soft("hap2s_e")),
        },
        "Embeddings of length 1 or not": {
            **baseline,
            **_unnormalised("batch_hard", {}, {"margin": 0.3 * unit}),
            **_unnormalised("hap2s_e", {}, {"margin": 0.3 * unit, "sigma": 0.5 * unit}),
        },
        "Gradient through the weights": {
            **baseline,
            **_at_rate_of(
                "hap2s_e", Setting("hap2s_e", "hap2s_e"), Setting("hap2s_e detached", "hap2s_e detached")
            ),
            **_at_rate_of(
                "hap2s_p", Setting("hap2s_p", "hap2s_p"), Setting("hap2s_p detached", "hap2s_p detached")
            ),
        },
    }


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
    groups = variants(study.plain.encoder.embedding_dim**0.5)
    if study.options.tiny:
        groups = {"Weight functions": _chosen("batch_hard") | _searched("hap2s halving")}

    def tables(seeds: Sequence[int]) -> report.Tables:
        found = {
            title: [collect(study, label, variant(study), seeds) for label, variant in group.items()]
            for title, group in groups.items()
        }
        return {title: (rows, rows[0]) for title, rows in found.items()}

    def drawn(tables: report.Tables) -> dict[str, Any]:
        shown = {title: rows for title, (rows, _) in tables.items()}
        made = {"": figures.dots(shown, steps=study.plain.steps)}
        if "Sigma" in tables and "Alpha" in tables:
            lines = {
                name: {loss: {float(row.label.split()[-1]): row for row in tables[name.title()][0][1:]}}
                for name, loss in (("sigma", "hap2s_e"), ("alpha", "hap2s_p"))
            }
            made["_parameters"] = figures.curves(lines, steps=study.plain.steps, log=True)
        return made

    report.carry_out(study, "flexibility" + suffix(study), [tables], drawn)


if __name__ == "__main__":
    start(main)
