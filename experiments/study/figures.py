"""Figures of the studies: one colour for each kind of loss, lines for raw pixels and the untrained encoder."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from study.rows import Row, first_metric, interval

# What stands beside the rows for scale.
UNTRAINED = "untrained"
# Raw pixels' mAP on the test classes: `hap2s_jax.data.emoji.PIXEL_BASELINE`, and configs/glyphs.py.
PIXELS = {"emoji": 0.155, "glyphs": 0.138}
# Okabe and Ito's colours, which colour-blind readers tell apart.
_HAP2S, _BASELINE, _CLASSES, _OTHER = "#D55E00", "#000000", "#009E73", "#0072B2"
_NAMES = {
    "batch_hard": "batch-hard triplet",
    "point_to_set_mean": "uniform mean",
    "hap2s_e": "HAP2S_E",
    "hap2s_p": "HAP2S_P",
    "nt_xent (n-pair)": "NT-Xent",
    "multi_similarity": "multi-similarity",
    "lifted_structure": "lifted structure",
    "msml": "MSML",
    "adasp": "AdaSP",
    "arcface": "ArcFace",
    "proxy_anchor": "Proxy-Anchor",
    "proxy_nca": "Proxy-NCA",
    "smooth_ap": "Smooth-AP",
    "sub-centre arcface": "sub-centre ArcFace",
    "supervised_contrastive": "supervised contrastive",
}


def name_of(label: str) -> str:
    """A row's name as the literature has it."""
    loss, plus, beside = label.partition(" + ")
    known = _NAMES.get(loss, loss.replace("hap2s_e", "HAP2S_E").replace("hap2s_p", "HAP2S_P"))
    return f"{known}{plus}{beside}"


def colour_of(label: str) -> str:
    """Vermilion for HAP2S, black for batch-hard, green for losses against class weights, blue for all others."""
    if label.startswith("hap2s"):
        return _HAP2S
    if label.startswith("batch_hard"):
        return _BASELINE
    return _CLASSES if label.startswith(("softmax", "arcface", "proxy", "sub-centre")) else _OTHER


def _dataset(title: str) -> str:
    return "glyphs" if "glyphs" in title else "emoji"


def _reference(axes: Any, title: str, rows: Sequence[Row], metric: str, *, across: bool) -> None:
    """Lines for raw pixels and for the untrained encoder, where they are known."""
    line = axes.axvline if across else axes.axhline
    if metric == "mAP":
        line(PIXELS[_dataset(title)], color="grey", linestyle=":", linewidth=1, label="raw pixels")
    for row in rows:
        if row.label == UNTRAINED and row.values(metric):
            line(
                statistics.fmean(row.values(metric)),
                color="grey",
                linestyle="--",
                linewidth=1,
                label=UNTRAINED,
            )


def _interval(row: Row, metric: str) -> tuple[float, float]:
    """How far the 95 % interval of a row's mean reaches below and above it."""
    low, high = interval(row, metric) or (0.0, 0.0)
    mean = statistics.fmean(row.values(metric))
    return (max(mean - low, 0.0), max(high - mean, 0.0)) if high else (0.0, 0.0)


def dots(panels: Mapping[str, Sequence[Row]], *, steps: int) -> Any:
    """A figure with a panel a table and a line a row: a dot for every seed, and the mean with its interval.

    Args:
      panels: title -> rows; those without a figure yet are left out, and so are panels without any.
      steps: of the trainings, for the titles.
    """
    from matplotlib.figure import Figure

    drawn = {}
    for title, rows in panels.items():
        metric = first_metric(rows)
        shown = [row for row in rows if row.values(metric) and row.label != UNTRAINED]
        if shown:
            drawn[title] = metric, sorted(shown, key=lambda row: statistics.fmean(row.values(metric)))
    columns = 1 if len(drawn) < 3 else 2
    heights = [1.2 + 0.3 * len(shown) for _, shown in drawn.values()] or [1.2]
    heights = [max(heights[first : first + columns]) for first in range(0, len(heights), columns)]
    figure = Figure(figsize=(7 * columns, sum(heights)), layout="constrained")
    all_axes = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights).ravel()
    for axes in all_axes[len(drawn) :]:
        axes.set_axis_off()
    for axes, (title, (metric, shown)) in zip(all_axes, drawn.items(), strict=False):
        for place, row in enumerate(shown):
            values, colour = row.values(metric), colour_of(row.label)
            below, above = _interval(row, metric)
            axes.errorbar(
                [statistics.fmean(values)],
                [place],
                xerr=[[below], [above]],
                fmt="|",
                color=colour,
                markersize=12,
                markeredgewidth=2,
                capsize=3,
            )
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.4, markersize=4)
        _reference(axes, title, panels[title], metric, across=True)
        axes.set_yticks(range(len(shown)), [name_of(row.label) for row in shown])
        axes.set_xlabel(f"{metric} on test classes, 95 % interval")
        seeds = max(len(row.outcomes) for row in shown)
        axes.set_title(f"{title} (n = {seeds} seeds, {_steps(shown, steps):,} steps)", fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, loc="lower right")
    return figure


def _steps(rows: Sequence[Row], usual: int) -> int:
    """How many steps the rows were trained for, where their settings say it."""
    return next(
        (row.setting.overrides["steps"] for row in rows if row.setting and "steps" in row.setting.overrides),
        usual,
    )


def curves(panels: Mapping[str, Mapping[str, Mapping[float, Row]]], *, steps: int, log: bool = False) -> Any:
    """A figure with a panel for every meaning of x, a curve a label: the mean with its interval.

    Args:
      panels: what x is -> label -> x -> row.
      steps: of the trainings, for the titles.
      log: whether x goes by factors.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * max(len(panels), 1), 4.5), layout="constrained")
    all_axes = figure.subplots(1, max(len(panels), 1), squeeze=False, sharey=True)[0]
    for axes, (xlabel, lines) in zip(all_axes, panels.items(), strict=False):
        rows = [row for line in lines.values() for row in line.values()]
        metric = first_metric(rows)
        for place, (label, line) in enumerate(lines.items()):
            points = [(x, row) for x, row in sorted(line.items()) if row.values(metric)]
            if points:
                spans = [_interval(row, metric) for _, row in points]
                axes.errorbar(
                    [x for x, _ in points],
                    [statistics.fmean(row.values(metric)) for _, row in points],
                    [[below for below, _ in spans], [above for _, above in spans]],
                    label=name_of(label),
                    capsize=3,
                    marker="osv^D<>P"[place % 8],
                    color=colour_of(label),
                    linestyle=("-", "--", "-.", ":")[place % 4],
                )
        _reference(axes, xlabel, rows, metric, across=False)
        if log:
            axes.set_xscale("log")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(f"{metric} on test classes, 95 % interval")
        seeds = max([len(row.outcomes) for row in rows], default=0)
        axes.set_title(f"n = {seeds} seeds, {_steps(rows, steps):,} steps", fontsize=10)
        axes.grid(alpha=0.3)
    legend = {}
    for axes in all_axes:
        handles, labels = axes.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    if legend:
        figure.legend(legend.values(), legend.keys(), fontsize=8, loc="outside right upper")
    return figure
