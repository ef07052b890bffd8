"""What README.md and experiments/README.md say of the studies, from the tables in experiments/results.

    python experiments/findings.py              # writes it, between <!-- study: NAME --> and <!-- /study -->
    python experiments/findings.py --check      # ends with 1 where a page says something else

The words stand in experiments/study/findings.md, the numbers in the tables' .json, which the studies' own commands make
with --report-only from the kept cells.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from study import packed
from study.figures import PIXELS, name_of
from study.rows import LEVEL

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ("README.md", "experiments/README.md")
# Short name -> file and title of a table; "" takes all tables of the file.
TABLES = {
    "acc": ("accuracy", ""),
    "flex": ("flexibility", "Weight functions"),
    "sigma": ("flexibility", "Sigma"),
    "alpha": ("flexibility", "Alpha"),
    "gradient": ("flexibility", "Gradient through the weights"),
    "norm": ("flexibility", "Embeddings of length 1 or not"),
    "glyphs": ("generality", "glyphs"),
    "longer": ("generality", "emoji, four times the steps"),
    "resnet18": ("generality", "emoji, ResNet-18"),
    "resnet26": ("generality", "emoji, ResNet-26, bottlenecks"),
    "gap": ("generality", "emoji, pooling over the whole map"),
    "searched": ("headline", "2,400 steps"),
}
_NOISES = {"labels": "Flipped labels", "images": "Foreign images"}
TABLES |= {
    f"{kind}{n}": ("robustness", f"{title}, {n}%")
    for kind, title in _NOISES.items()
    for n in (0, 5, 10, 20, 30)
}
_WEIGHTS = {
    "hap2s three_hardest": "the three hardest alike (`hap2s_hardest`)",
    "hap2s halving": "halving from rank to rank (`hap2s_ranked`)",
    "hap2s gaussian": "Gaussian",
    "hap2s_e": "**exponential, sigma 0.5: HAP2S_E**",
    "hap2s_p": "**polynomial, alpha 10: HAP2S_P**",
    "hap2s proportional": "`d` and `1/d` themselves, the flattest",
}
Rows = Mapping[str, Any]


class Numbers:
    """The numbers that the words ask for.

    Args:
      results: folder of the studies' .json.
    """

    def __init__(self, results: pathlib.Path):
        self._results = results
        self._files: dict[str, Any] = {}

    def _read(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = json.loads((self._results / f"{name}.json").read_text())
        return self._files[name]

    def rows(self, table: str) -> Rows:
        """The rows of a table by its short name."""
        file, title = TABLES[table]
        tables = self._read(file)["tables"]
        return tables[title] if title else {label: row for t in tables.values() for label, row in t.items()}

    def mean(self, table: str, label: str) -> float:
        """The mean mAP of a row over its seeds."""
        return statistics.fmean(seed["mAP"] for seed in self.rows(table)[label]["seeds"].values())

    def over(self, table: str, label: str, other: str) -> str:
        """How much a row is better than another, with its interval; n.s. where that is not established."""
        found = self.rows(table)[label]["over"][other]
        mark = "" if found["p"] < LEVEL else " (n.s.)"
        return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]{mark}".replace(
            "-0.000", "0.000"
        )

    def ranking(self, table: str) -> str:
        """The lines of a table, best first."""
        labels = sorted((n for n in self.rows(table) if n != "untrained"), key=lambda n: -self.mean(table, n))
        named = _WEIGHTS if table == "flex" else {}
        lines = []
        for label in labels:
            name = named.get(label, name_of(label))
            name = f"**{name}**" if label in ("hap2s_e", "hap2s_p") and not named else name
            gain = "-" if label == "batch_hard" else self.over(table, label, "batch_hard")
            lines.append(f"| {name} | {self.mean(table, label):.3f} | {gain} |")
        return "\n".join(lines)

    def across(self, tables: list[str], labels: str) -> str:
        """A line for each row, a column for each table."""
        return "\n".join(
            f"| {name_of(label)} | " + " | ".join(f"{self.mean(t, label):.3f}" for t in tables) + " |"
            for label in labels.split(", ")
        )

    def seeds(self) -> str:
        """The lines of the main job over its seeds."""
        rows = self._read("emoji_seeds")["rows"]
        untrained = [row for name, row in rows.items() if name.startswith("untrained")]
        columns = ("mAP", "rank-1", "recall@1", "map@r", "nmi")
        shown = {
            "raw pixels": rows["raw pixels"],
            "untrained, mean": {c: statistics.fmean(row[c] for row in untrained) for c in columns},
            "trained, worst": rows["trained, worst"],
            "trained, mean": rows["trained, mean"],
        }
        return "\n".join(
            f"| {name} | " + " | ".join(f"{row[c]:.3f}" if c in row else "-" for c in columns) + " |"
            for name, row in shown.items()
        )

    def counts(self) -> dict[str, int]:
        """How many cells, and test classes of emoji, there are."""
        folders = [self._results / "cells" / name for name in ("emoji", "glyphs")]
        cells = [cell for folder in folders for cell in packed.unpacked(folder).values()]
        families = collections.Counter(packed.families_of(folders[0]) or [])
        changed = [str(cell.get("environment", {}).get("commit")).endswith("+changes") for cell in cells]
        return {
            "cells": len(cells),
            "changed": sum(changed),
            "classes": families.total(),
            "families": len(families),
            "largest": max(families.values()),
        }

    def fill(self, match: re.Match[str]) -> str:
        """The text that stands for what is in braces."""
        table, wanted = match[1], " ".join(match[2].split())
        whole: dict[str, Callable[[], str]] = {
            "ranking": lambda: self.ranking(wanted),
            "noise": lambda: self.across(
                ["labels0", *(f"{kind}{n}" for kind in _NOISES for n in (10, 20, 30))], wanted
            ),
            "places": lambda: self.across(["glyphs", "resnet18", "resnet26", "gap"], wanted),
            "seeds": self.seeds,
            "count": lambda: f"{self.counts()[wanted]}",
            "pixels": lambda: f"{PIXELS[wanted]:.3f}",
            "setting": lambda: (
                f"{self.rows('acc')[wanted]['setting']['rate']:g} times the config's learning rate"
            ),
            "runs": lambda: " to ".join(_span(self._read("emoji_seeds")[wanted].values())),
        }
        if table in whole:
            return whole[table]()
        label, _, other = wanted.partition(" > ")
        if other:
            return self.over(table, label, other)
        if wanted.endswith(" share"):
            label = wanted.removesuffix(" share")
            return f"{100 * self.mean(table, label) / self.mean('labels0', label):.0f} %"
        return f"{self.mean(table, label):.3f}"


def _span(values: Iterable[float]) -> list[str]:
    """The smallest and the largest value, once where they are shown alike."""
    ordered = sorted(values)
    return list(dict.fromkeys(f"{v:.0f}" if v >= 10 else f"{v:.1f}" for v in (ordered[0], ordered[-1])))


def parts(results: pathlib.Path) -> dict[str, str]:
    """The parts of the pages by name, with their numbers."""
    text = (ROOT / "experiments" / "study" / "findings.md").read_text()
    found = re.split(r"^## (\w+)\n", text, flags=re.MULTILINE)[1:]
    numbers = Numbers(results)
    words = dict(zip(found[::2], found[1::2], strict=True))
    filled = {name: re.sub(r"\{(\w+): ([^}]*)\}", numbers.fill, part) for name, part in words.items()}
    return {name: "\n\n".join(map(_wrapped, part.strip().split("\n\n"))) for name, part in filled.items()}


def _wrapped(block: str) -> str:
    """A paragraph or a list in lines of 120 characters; a table as it is."""
    if block.startswith("|"):
        return block
    items = re.split(r"\n(?=- )", block)
    return "\n".join(
        textwrap.fill(" ".join(i.split()), 120, subsequent_indent="  " if i.startswith("- ") else "")
        for i in items
    )


def written(page: str, made: Mapping[str, str]) -> str:
    """A page with the parts that its markers name."""
    return re.sub(
        r"(<!-- study: (\w+) -->\n).*?\n(<!-- /study -->)",
        lambda match: f"{match[1]}\n{made[match[2]]}\n\n{match[3]}",
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    """Writes the pages, or checks them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args()
    made = parts(ROOT / "experiments" / "results")
    for name in PAGES:
        path = ROOT / name
        old = path.read_text()
        new = written(old, made)
        if options.check and new != old:
            raise SystemExit(
                f"error: {name} says other numbers than the tables: python experiments/findings.py"
            )
        path.write_text(new)


if __name__ == "__main__":
    main()
