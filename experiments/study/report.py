"""The report of a study: its tables as Markdown and as JSON, its figure, and where its cells come from."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hap2s_jax.errors import UserError
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.reporting.table import to_markdown
from study.cells import METRICS, Setting, Study
from study.rows import Difference, Row, correct, difference, first_metric
from study.search import BEYOND, RATES

# Title -> rows, and the one that the others are compared with.
Tables = Mapping[str, tuple[Sequence[Row], Row | None]]
_HEAD = """`{command}`, data set `{dataset}`. Mean ± standard deviation over seeds. A difference is a mean over seeds
with the 95 % interval of a bootstrap over seeds and families of look-alike test classes; n is the number of seeds, and
n.s. marks what is not established at 5 % once all comparisons of the table are corrected for (Holm).
"""


def carry_out(
    study: Study,
    name: str,
    parts: Sequence[Callable[[Sequence[int]], Tables]],
    figures: Callable[[Tables], Mapping[str, Any]],
    remarks: Callable[[], Sequence[str]] = list,
) -> None:
    """Runs a study as far as its time goes, and writes its report.

    Args:
      study: runs the cells.
      name: of the study's files.
      parts: each takes seeds and makes tables, whose cells it runs where the study may run any; the first comes first.
      figures: the tables -> figures of matplotlib by what their names end with.
      remarks: lines below the tables.

    Raises:
      UserError: after all is written, where cells have crashed.
    """
    if not study.options.report_only:
        run(study, parts)
    study.options.report_only = True
    found = {title: made for part in parts for title, made in part(study.shown_seeds).items()}
    write(study, name, found, lambda: figures(found), shlex.join(["python", *sys.argv]), remarks())


def run(study: Study, parts: Sequence[Callable[[Sequence[int]], Tables]]) -> None:
    """Trains what the parts of a study lack, seed by seed, so that one that is cut short has all rows."""
    seeds = study.options.seeds
    study.complete(lambda: [part(seeds[:count]) for part in parts for count in range(1, len(seeds) + 1)])


def at_edge(setting: Setting) -> bool:
    """Whether the search took the lowest or the highest rate that it may try, beyond which a better one may lie."""
    return setting.rate in (min(RATES) / 2**BEYOND, max(RATES) * 2**BEYOND)


def table(rows: Sequence[Row], baseline: Row | None, metrics: Sequence[str] = METRICS) -> str:
    """The Markdown table of some rows, with the difference of their first metric to the baseline."""
    first = first_metric(rows)
    shown = [m for m in metrics if any(row.values(m) for row in rows)]
    over = {} if baseline is None else _over(rows, baseline, first)
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        cells = {"seeds": f"{len(row.outcomes)} of {len(row.wanted)}"}
        if row.diverged:
            cells["seeds"] += f", diverged: {', '.join(map(str, row.diverged))}"
        for metric in shown:
            cells[metric] = spread(row.values(metric))
        if baseline is not None and over.get(row.label):
            cells[f"{first} over {baseline.label}"] = str(over[row.label])
        cells["setting"] = "search unfinished" if row.setting is None else row.setting.describe()
        if row.setting is not None and at_edge(row.setting):
            cells["setting"] += " (edge of the grid)"
        lines[row.label] = cells
    columns = list(dict.fromkeys(name for cells in lines.values() for name in cells if name != "setting"))
    return to_markdown(lines, columns=[*columns, "setting"])


def _over(rows: Sequence[Row], baseline: Row, metric: str) -> dict[str, Difference | None]:
    """How much each of a table's rows is better than its baseline, corrected for all of them."""
    found = {row.label: difference(row, baseline, metric) for row in rows if row is not baseline}
    correct(found.values())
    return found


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def write(
    study: Study,
    name: str,
    tables: Tables,
    figures: Callable[[], Mapping[str, Any]],
    command: str,
    remarks: Sequence[str] = (),
) -> None:
    """Writes ``results/<name>.json``, ``.md`` and ``.png``; for the arguments and errors see `carry_out`."""
    folder = study.folder
    text = [_HEAD.format(command=command, dataset=study.options.dataset)]
    everything = [row for rows, _ in tables.values() for row in rows]
    summary: dict[str, Any] = {"command": command, "cells": _provenance(everything), "tables": {}}
    missing = sum(len(row.wanted) - len(row.outcomes) for row in everything)
    for title, (rows, baseline) in tables.items():
        text += [f"\n## {title}\n", table(rows, baseline)]
        summary["tables"][title] = _as_json(rows, baseline, _peers(tables, title))
    failures = [f"{cell}: {error}" for cell, error in study.failed.items()]
    summary["unfinished_cells"], summary["failed_cells"] = missing, failures
    text += [f"\n{missing} cells have not run." if missing else "\nAll cells have run.", *remarks]
    text += [_made_with(summary["cells"])] if summary["cells"]["count"] else []
    text += [f"Failed, to be run again: {failure}" for failure in failures]
    with replacing(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1, default=list) + "\n")
    (folder / f"{name}.md").write_text("\n".join(text) + "\n")
    save_figures(folder / name, figures)
    print(
        f"written: {folder / name}.json, .md and .png; {missing} cells have not run, {len(failures)} failed"
    )
    if failures:
        raise UserError(
            f"{len(failures)} cells have crashed; the same command runs them again:\n" + "\n".join(failures)
        )


def save_figures(path: pathlib.Path, figures: Callable[[], Mapping[str, Any]]) -> None:
    """Draws the figures and writes them as ``<path><suffix>.png``."""
    for suffix, figure in figures().items():
        # Without the version of matplotlib: the same cells make the same file.
        figure.savefig(f"{path}{suffix}.png", dpi=120, bbox_inches="tight", metadata={"Software": None})


def _peers(tables: Tables, title: str) -> list[Row]:
    """The rows that a table's rows are compared with: tables of one baseline are parts of one comparison."""
    baseline = tables[title][1]
    found = [tables[title][0]] if baseline is None else [rows for rows, b in tables.values() if b is baseline]
    return list({id(row): row for rows in found for row in rows}.values())


def _as_json(rows: Sequence[Row], baseline: Row | None, peers: Sequence[Row]) -> dict[str, Any]:
    """A table's rows by label; ``over`` is how much a row is better than each of its peers, corrected for all pairs."""
    metric = first_metric(rows)
    over_baseline = {} if baseline is None else _over(rows, baseline, metric)
    over: dict[tuple[int, int], Difference | None] = {}
    for place, row in enumerate(peers):
        for other in range(place):
            over[place, other] = difference(row, peers[other], metric)
    correct(over.values())

    def against(row: Row) -> dict[str, dict[str, Any]]:
        here, found = peers.index(row), {}
        for place, peer in enumerate(peers):
            entry = over.get((max(here, place), min(here, place)))
            if entry is not None:
                found[peer.label] = _signed(entry, 1 if here > place else -1)
        return found

    return {
        row.label: {
            "setting": None if row.setting is None else dataclasses.asdict(row.setting),
            "seeds": {seed: o.get("metrics", o) for seed, o in row.outcomes.items()},
            "diverged": row.diverged,
            "seconds": [o["seconds"] for o in row.outcomes.values() if "seconds" in o],
            "over_baseline": None if not (d := over_baseline.get(row.label)) else _signed(d, 1),
            "over": against(row),
        }
        for row in rows
    }


def _signed(found: Difference, sign: int) -> dict[str, Any]:
    low, high = sorted((sign * found.low, sign * found.high))
    numbers = {"mean": sign * found.mean, "low": low, "high": high, "p": found.p}
    return {k: round(v, 6) for k, v in numbers.items()} | {"n": len(found.by_seed)}


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
