"""The report of a study: means over seeds, comparisons paired by seed, a Markdown table, a figure."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hap2s_jax.errors import UserError
from hap2s_jax.reporting import environment
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.reporting.table import to_markdown
from study.cells import FIRST_METRICS, LEARNING_RATE_FACTORS, METRICS, RATES_BEYOND, Setting, Study

RESAMPLES = 2000
BASELINE = "batch_hard"


@dataclasses.dataclass
class Row:
    """A line of a study's table: one setting on one data set over its seeds.

    Attributes:
      label: its name.
      setting: what was trained; None where its search has not finished.
      outcomes: seed -> the cell's outcome; seeds that failed or have not run are missing.
      wanted: the seeds asked for.
    """

    label: str
    setting: Setting | None
    outcomes: dict[int, dict[str, Any]]
    wanted: tuple[int, ...]

    @property
    def diverged(self) -> list[int]:
        """Seeds whose training diverged."""
        return [seed for seed, outcome in self.outcomes.items() if "diverged" in outcome]

    def values(self, metric: str) -> list[float]:
        """A metric of every seed, none at all where one diverged: it must not be averaged away."""
        if self.diverged:
            return []
        return [o["metrics"][metric] for o in self.outcomes.values() if metric in o["metrics"]]


def collect(study: Study, label: str, setting: Setting | None, seeds: Sequence[int], **where: Any) -> Row:
    """Runs a setting's cells and makes a row of them."""
    outcomes = {}
    if setting is not None:
        for seed in seeds:
            outcome = study.run(setting, seed, **where)
            if outcome is not None:
                outcomes[seed] = outcome
    return Row(label, setting, outcomes, tuple(seeds))


class Difference(NamedTuple):
    """How much one row is better than another.

    Attributes:
      mean: over the seeds that both have.
      low: of the 95 % interval of a bootstrap over test classes, each drawn for all seeds and both rows at once.
      high: its other end.
      by_seed: the differences whose mean it is. The interval holds the seeds fixed; these tell what they change.
    """

    mean: float
    low: float
    high: float
    by_seed: tuple[float, ...]

    def __str__(self) -> str:
        ahead = sum(gain > 0 for gain in self.by_seed)
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}], {ahead} of {len(self.by_seed)}"


@functools.cache
def _draws(classes: int) -> np.ndarray:
    return np.random.default_rng(0).multinomial(classes, np.full(classes, 1 / classes), RESAMPLES)


def difference(row: Row, other: Row, metric: str) -> Difference | None:
    """How much `row` is better than `other`; None without common seeds."""
    seeds = [s for s in row.outcomes if s in other.outcomes]
    if not seeds or row.diverged or other.diverged:
        return None
    if any(metric not in r.outcomes[s].get("by_class", {}) for s in seeds for r in (row, other)):
        return None

    def table(r: Row) -> tuple[np.ndarray, np.ndarray]:
        parts = [r.outcomes[s]["by_class"][metric] for s in seeds]
        return np.array([p["sums"] for p in parts]), np.array([p["counts"] for p in parts], float)

    (sums, counts), (other_sums, other_counts) = table(row), table(other)
    classes = sums.shape[1]

    def gains(times: np.ndarray) -> np.ndarray:
        return (times @ sums.T) / (times @ counts.T) - (times @ other_sums.T) / (times @ other_counts.T)

    low, high = np.percentile(gains(_draws(classes)).mean(axis=1), [2.5, 97.5])
    by_seed = gains(np.ones((1, classes)))[0]
    return Difference(float(by_seed.mean()), float(low), float(high), tuple(by_seed.tolist()))


def first_metric(rows: Iterable[Row]) -> str:
    """The metric of comparison, by which settings were chosen too: "mAP", or "map@r" where there is none."""
    rows = list(rows)
    return next((m for m in FIRST_METRICS if any(row.values(m) for row in rows)), FIRST_METRICS[0])


def at_edge(setting: Setting) -> bool:
    """Whether the search took the lowest or the highest rate that it may try, beyond which a better one may lie."""
    beyond = 2**RATES_BEYOND
    return setting.rate in (min(LEARNING_RATE_FACTORS) / beyond, max(LEARNING_RATE_FACTORS) * beyond)


def table(rows: Sequence[Row], baseline: Row | None, metrics: Sequence[str] = METRICS) -> str:
    """The Markdown table of some rows, with the difference of their first metric to the baseline."""
    first = first_metric(rows)
    shown = [m for m in metrics if any(row.values(m) for row in rows)]
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        cells = {"seeds": f"{len(row.outcomes)} of {len(row.wanted)}"}
        if row.diverged:
            cells["seeds"] += f", diverged: {', '.join(map(str, row.diverged))}"
        for metric in shown:
            cells[metric] = spread(row.values(metric))
        if baseline is not None and row is not baseline:
            found = difference(row, baseline, first)
            if found:
                cells[f"{first} over {baseline.label}"] = str(found)
        cells["setting"] = "search unfinished" if row.setting is None else row.setting.describe()
        if row.setting is not None and at_edge(row.setting):
            cells["setting"] += " (edge of the grid)"
        lines[row.label] = cells
    columns = list(dict.fromkeys(name for cells in lines.values() for name in cells if name != "setting"))
    return to_markdown(lines, columns=[*columns, "setting"])


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def write(
    study: Study,
    name: str,
    tables: Mapping[str, tuple[Sequence[Row], Row | None]],
    figure: Any,
    command: str,
    remarks: Sequence[str] = (),
) -> None:
    """Writes ``results/<name>.json``, ``.md`` and ``.png``.

    Args:
      study: for its folder and its failures.
      name: of the study.
      tables: title -> rows and the one that the others are compared with.
      figure: of matplotlib.
      command: what makes all this.
      remarks: lines below the tables.

    Raises:
      UserError: after all is written, where cells have crashed.
    """
    folder: pathlib.Path = study.folder
    text = [
        f"`{command}`, data set `{study.options.dataset}`. Mean ± standard deviation over seeds; differences are"
    ]
    text += [
        "means over seeds with the 95 % interval of a bootstrap over test classes, paired by class and seed, and the",
        "number of seeds that are ahead.\n",
    ]
    summary: dict[str, Any] = {"command": command, "environment": environment.describe(), "tables": {}}
    everything = [row for rows, _ in tables.values() for row in rows]
    summary["cells"] = _provenance(everything)
    missing = 0
    for title, (rows, baseline) in tables.items():
        text += [f"\n## {title}\n", table(rows, baseline)]
        first = first_metric(rows)
        missing += sum(len(row.wanted) - len(row.outcomes) for row in rows)
        # Tables of one baseline are parts of one comparison.
        peers = [row for found, base in tables.values() if base is baseline for row in found]
        summary["tables"][title] = {row.label: _as_json(row, baseline, peers, first) for row in rows}
    failures = [f"{cell}: {error}" for cell, error in study.failed.items()]
    summary["unfinished_cells"], summary["failed_cells"] = missing, failures
    text += [f"\n{missing} cells have not run." if missing else "\nAll cells have run.", *remarks]
    text += [_made_with(summary["cells"])] if summary["cells"]["count"] else []
    text += [f"Failed, to be run again: {failure}" for failure in failures]
    with replacing(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1, default=list) + "\n")
    (folder / f"{name}.md").write_text("\n".join(text) + "\n")
    figure.savefig(folder / f"{name}.png", dpi=150, bbox_inches="tight")
    print(
        f"written: {folder / name}.json, .md and .png; {missing} cells have not run, {len(failures)} failed"
    )
    if failures:
        raise UserError(
            f"{len(failures)} cells have crashed; the same command runs them again:\n" + "\n".join(failures)
        )


def _as_json(row: Row, baseline: Row | None, peers: Iterable[Row], metric: str) -> dict[str, Any]:
    """A row's sentence in the summary; ``over`` is how much it is better than each of its peers."""
    over_baseline = None if baseline is None else difference(row, baseline, metric)
    over = {peer.label: difference(row, peer, metric) for peer in peers if peer is not row}
    return {
        "setting": None if row.setting is None else dataclasses.asdict(row.setting),
        "seeds": {seed: o.get("metrics", o) for seed, o in row.outcomes.items()},
        "diverged": row.diverged,
        "seconds": [o["seconds"] for o in row.outcomes.values() if "seconds" in o],
        "over_baseline": None if over_baseline is None else over_baseline._asdict(),
        "over": {label: str(found) for label, found in over.items() if found is not None},
    }


def _provenance(rows: Iterable[Row]) -> dict[str, Any]:
    """Of what code, versions and machines the cells behind some rows are."""
    made = [o["environment"] for row in rows for o in row.outcomes.values() if "environment" in o]
    facts = {"commits": "commit", "packages": "packages", "devices": "devices", "cpus": "cpu"}
    every = {name: {json.dumps(m.get(key), sort_keys=True) for m in made} for name, key in facts.items()}
    return {"count": len(made)} | {
        name: [json.loads(x) for x in sorted(found)] for name, found in every.items()
    }


def _made_with(cells: Mapping[str, Any]) -> str:
    versions = sorted({p.get("jax", "?") for p in cells["packages"]})
    return (
        f"The cells shown are of {len(cells['commits'])} commits (in the .json), jax {', '.join(versions)}, "
        f"{', '.join(map(str, cells['cpus']))}."
    )


def dots(panels: Mapping[str, Sequence[Row]]) -> Any:
    """A figure with a panel a table, a line a row: a dot for every seed and a bar at their mean.

    Args:
      panels: title -> rows; those without a figure yet are left out, and so are panels without any.
    """
    from matplotlib.figure import Figure

    drawn = {}
    for title, rows in panels.items():
        metric = first_metric(rows)
        shown = [row for row in rows if row.values(metric)]
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
            values = row.values(metric)
            colour = "tab:red" if row.label.startswith("hap2s") else "tab:blue"
            axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.5, markersize=4)
            axes.plot(
                [statistics.fmean(values)], [place], "|", color=colour, markersize=14, markeredgewidth=2
            )
        axes.set_yticks(range(len(shown)), [row.label for row in shown])
        axes.set_xlabel(f"{metric} on test classes")
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    return figure


def curves(panels: Mapping[str, Mapping[str, Mapping[float, Row]]]) -> Any:
    """A figure with a panel for every meaning of x, a curve a label: the mean over seeds, its standard deviation as
    a bar.

    Args:
      panels: what x is -> label -> x -> row.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * max(len(panels), 1), 4.5), layout="constrained")
    all_axes = figure.subplots(1, max(len(panels), 1), squeeze=False, sharey=True)[0]
    for axes, (xlabel, lines) in zip(all_axes, panels.items(), strict=False):
        metric = first_metric(row for rows in lines.values() for row in rows.values())
        for place, (label, rows) in enumerate(lines.items()):
            points = [(x, row.values(metric)) for x, row in sorted(rows.items()) if row.values(metric)]
            if points:
                means = [statistics.fmean(v) for _, v in points]
                deviations = [statistics.stdev(v) if len(v) > 1 else 0.0 for _, v in points]
                axes.errorbar(
                    [x for x, _ in points],
                    means,
                    deviations,
                    label=label,
                    capsize=3,
                    marker="o",
                    color=f"C{place}",
                )
        axes.set_xlabel(xlabel)
        axes.set_ylabel(f"{metric} on test classes")
        axes.grid(alpha=0.3)
    legend = {}
    for axes in all_axes:
        handles, labels = axes.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    if legend:
        figure.legend(legend.values(), legend.keys(), fontsize=8, loc="outside right upper")
    return figure
