"""Watches the numbers of training for divergence and collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hap2s_jax.errors import UserError

# Below these the embeddings have collapsed into a point, or the loss hardly produces a gradient.
COLLAPSED_SPREAD = 0.02
INACTIVE_FRACTION = 0.005


class DivergedError(UserError):
    """The loss or a norm is no longer a finite number."""


def check_finite(step: int, metrics: Mapping[str, float]) -> None:
    """Raises a `DivergedError` that names the step and the numbers, unless loss and norms are finite."""
    watched = {k: metrics[k] for k in ("loss", "grad_norm", "param_norm") if k in metrics}
    bad = [k for k, v in watched.items() if not math.isfinite(v)]
    if bad:
        numbers = ", ".join(f"{k} {v:.6g}" for k, v in watched.items())
        raise DivergedError(
            f"training diverged: {' and '.join(bad)} not finite at step {step} ({numbers}); lower "
            "optimizer.learning_rate, set optimizer.clip_norm or lengthen schedule.warmup_steps"
        )


class CollapseWatch:
    """Warns once when the embedding collapses or the loss has no active anchors, and again after a recovery, but not
    before twice the step: with few classes a loss may fall silent in every other window.
    """

    def __init__(self):
        self._state = {"collapsed": False, "silent": False}
        self._next = {"collapsed": 0, "silent": 0}

    def check(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Returns warnings, each one line, for the mean metrics of a logging window."""
        warnings = []
        spread = metrics.get("embedding_spread", math.inf)
        if self._enters(step, "collapsed", spread < COLLAPSED_SPREAD):
            warnings.append(
                f"step {step}: the embeddings are collapsing into one point (spread {spread:.3g} of their norm); "
                "lower the learning rate, lengthen the warm-up, use soft_margin or a softer weighting"
            )
        active = metrics.get("active_fraction", math.inf)
        if self._enters(step, "silent", active < INACTIVE_FRACTION):
            warnings.append(
                f"step {step}: only {100 * active:.2g} % of the anchors are active; the loss hardly learns any more: "
                "raise the margin, or use more classes per batch"
            )
        return warnings

    def _enters(self, step: int, name: str, now: bool) -> bool:
        before, self._state[name] = self._state[name], now
        enters = now and not before and step >= self._next[name]
        if enters:
            self._next[name] = 2 * step
        return enters
