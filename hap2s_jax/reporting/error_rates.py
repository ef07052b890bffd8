"""The picture of a calibration: what a threshold costs on either side."""

from __future__ import annotations

import os

import numpy.typing as npt

from hap2s_jax.reporting.plots import STYLE, empty_figure, save


def error_rates(
    path: str | os.PathLike[str],
    thresholds: npt.ArrayLike,
    false_accepts: npt.ArrayLike,
    false_rejects: npt.ArrayLike,
    *,
    chosen: float | None,
    distance: str,
    title: str,
) -> None:
    """Draws false accepts and false rejects over the threshold, and against one another.

    Args:
      path: the PNG file to write.
      thresholds: `[p]` distances, ascending.
      false_accepts, false_rejects: `[p]` shares, 0 to 1.
      chosen: the threshold that is marked, None for none.
      distance: what it is of, for the axis.
      title: the heading.

    Raises:
      UserError: the file cannot be written.
    """
    import matplotlib
    import numpy as np

    at = np.asarray(thresholds, float)
    accepts, rejects = np.asarray(false_accepts, float), np.asarray(false_rejects, float)
    place = None if chosen is None else max(0, int(np.searchsorted(at, chosen, side="right")) - 1)
    with matplotlib.rc_context(rc=STYLE):
        figure = empty_figure(11, 4.4)
        left, right = figure.subplots(1, 2)
        left.set_title("Shares over the threshold")
        left.plot(at, accepts, color="#D55E00", linewidth=1.9, label="false accepts (unknown class answered)")
        left.plot(at, rejects, color="#0072B2", linewidth=1.9, label="false rejects (known class missed)")
        left.set_xlabel(f"threshold on the {distance} distance")
        right.set_title("Against one another")
        right.plot(accepts, rejects, color="#1f2328", linewidth=1.9)
        if place is not None:
            left.axvline(at[place], color="#6e7781", linewidth=1, linestyle="--")
            left.text(at[place], 1.0, f" {at[place]:.3f}", color="#6e7781", va="top")
            right.plot(accepts[place], rejects[place], "o", color="#6e7781")
        right.set_xlabel("false accepts")
        right.set_ylabel("false rejects")
        for axes in (left, right):
            axes.set_ylim(-0.02, 1.02)
        right.set_xlim(-0.02, 1.02)
        figure.legend(loc="outside lower left", frameon=False, fontsize=9, ncols=2)
        figure.suptitle(title, x=0.012, ha="left", fontsize=13)
        save(figure, path)


def roc_curve(
    path: str | os.PathLike[str],
    far: npt.ArrayLike,
    tar: npt.ArrayLike,
    *,
    bands: tuple[npt.ArrayLike, npt.ArrayLike],
    level: float,
    title: str,
) -> None:
    """Draws true-accept rates over false-accept rates on a logarithmic axis.

    Args:
      path: the PNG file to write.
      far, tar: `[p]` shares, ascending.
      bands: `[g]` false-accept rates and `[2, g]` bounds of the true-accept rate there.
      level: share of resampled curves between the bounds.
      title: the heading.

    Raises:
      UserError: the file cannot be written.
    """
    import matplotlib
    import numpy as np

    rates, bounds = (np.asarray(part, float) for part in bands)
    with matplotlib.rc_context(rc=STYLE):
        figure = empty_figure(7, 4.8)
        axes = figure.subplots()
        axes.set_title(title)
        axes.fill_between(
            rates,
            *bounds,
            color="#0072B2",
            alpha=0.2,
            linewidth=0,
            label=f"{level:.0%} interval, classes drawn anew",
        )
        lowest = float(rates.min()) if rates.size else 1e-2
        axes.step(far, tar, where="post", color="#0072B2", linewidth=1.9)
        axes.set_xscale("log")
        axes.set_xlim(lowest, 1)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("false-accept rate, of pairs of two classes")
        axes.set_ylabel("true-accept rate, of pairs of one class")
        axes.legend(loc="lower right", frameon=False, fontsize=9)
        save(figure, path)
