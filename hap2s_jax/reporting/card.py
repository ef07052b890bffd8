"""The model card of a run: encoder, data, figures and their origin."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hap2s_jax.data.several import source_names
from hap2s_jax.reporting import environment
from hap2s_jax.reporting.table import to_markdown

FILE_NAME = "model_card.md"

_MOST_SYSTEMS = 5  # columns beside the name; wider tables are hard to read
# By the part of a metric's name before "@", "-" or "_" and a number; `docs/evaluation.md` has them in full.
_DEFINITIONS = {
    "recall": "recall@k: share of queries with a match among the k nearest images (every other test image is asked)",
    "rank": "rank-k: share of queries with a match among the k nearest gallery images (those without any are left out)",
    "mAP": "mAP: mean over queries of the mean over matches of the precision at the match",
    "mAP_trapezoid": "mAP_trapezoid: as mAP, with the precision averaged before and at the match (Market-1501's)",
    "mINP": "mINP: mean over queries of matches / rank of the last match",
    "map@r": "map@r: as mAP, but only matches among the r nearest count, r being how many there are",
    "r_precision": "r_precision: share of matches among the r nearest, r being how many there are",
    "mrr": "mrr: mean of 1 / rank of the first match",
    "nmi": "nmi: normalised mutual information of k-means clusters (as many as classes) and the classes",
    "ami": "ami: the same adjusted for chance",
    "f1": "f1: F1 over pairs of images, same cluster against same class",
}
_RULES = {
    "class": "class: every test image queries all the others",
    "query_gallery": "query_gallery: queries against the gallery; matches seen by the query's own camera are removed",
    "in_shop": "in_shop: query images against gallery images",
    "closed_set": "closed_set: test images against a database of the same individuals",
    "open_set": "open_set: queries of known and of unknown classes against the gallery",
}


def model_card(
    results: Mapping[str, Any],
    *,
    data: Mapping[str, Mapping[str, int]],
    protocols: tuple[str, ...],
    parameters: int,
    seen_classes: int = 0,
    threshold: str | None = None,
) -> str:
    """The card as Markdown.

    Args:
      results: what ``results.json`` holds.
      data: part of the data set ("train", "validation", "test") -> ``{"images", "classes"}``.
      protocols: which evaluations the figures are of.
      parameters: of the encoder.
      seen_classes: how many of the test classes have images in training or validation too.
      threshold: what is to be said of it, None without a calibration.
    """
    config, facts = results["config"], results["environment"]
    sections = [
        f"# {config['name']}: {config['encoder']['name']} trained with {config['loss']['name']}",
        _what_it_is(results, parameters),
        "```python\nimport hap2s_jax\n\nembeddings = hap2s_jax.load(WORKDIR)(PATHS_OF_IMAGES)\n```",
        "## Data",
        _data(", ".join(source_names(config["data"])), data, seen_classes),
        "## Figures on the test classes",
        _figures(results),
        "\n".join(f"- {line}" for line in _definitions(results["test"], protocols)),
    ]
    if threshold is not None:
        sections += ["## Threshold", threshold]
    text = json.dumps(config, indent=2, default=list)
    sections += [
        "## How it was made",
        _origin(results, facts),
        f"<details><summary>Config</summary>\n\n```json\n{text}\n```\n\n</details>",
    ]
    return "\n\n".join(sections) + "\n"


def chosen_by(results: Mapping[str, Any]) -> str:
    """The criterion that chose the checkpoint of `results`."""
    if results["config"]["evaluate"]["weights"] == "best" and results.get("validation"):
        return f"the best by {results['config']['checkpoint']['best_metric']} on the validation classes"
    return "the last"


def saturation(results: Mapping[str, Any], records: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """A line if the metric that the best checkpoint is chosen by cannot tell it from others."""
    name = f"validation/{results['config']['checkpoint']['best_metric']}"
    values = {record["step"]: record[name] for record in records if name in record}
    equal = [step for step, value in values.items() if value == max(values.values())]
    if len(equal) > 1 and results["config"]["evaluate"]["weights"] == "best":
        yield (
            f"{name} is {values[equal[0]]:.4f} at {len(equal)} of {len(values)} evaluations, from step "
            f"{equal[0]:.0f} on, and cannot tell them apart: the latest that was kept is taken; more validation "
            "classes (data.validation_fraction) would choose better"
        )


def _what_it_is(results: Mapping[str, Any], parameters: int) -> str:
    config = results["config"]
    dim = config["encoder"].get("embedding_dim") or "as many as pooled features of"
    weights = ", the moving average" if config.get("ema_decay") else ""
    height, width = config["data"]["image_size"]
    return (
        f"Maps an image to {dim} numbers, so that images of one class lie close by {config['evaluate']['distance']} "
        f"distance. Weights of step {results['weights_of_step']} of {results['steps']}, {chosen_by(results)}{weights}; "
        f"{parameters:,} parameters. Images are resized to {height} x {width} (height x width) and normalised by the "
        "encoder itself."
    )


def _data(name: str, data: Mapping[str, Mapping[str, int]], seen_classes: int) -> str:
    parts = "; ".join(
        f"{part} {sizes['images']:,} images of {sizes['classes']:,} classes" for part, sizes in data.items()
    )
    if seen_classes:
        seen = f"{seen_classes:,} test classes have images in training or validation; the figures are not of new ones"
    else:
        seen = "The test classes occur neither in training nor in the choice of weights"
    return (
        f"{name}: {parts}. {seen}. The encoder is as good as this data: on images of another kind, measure before "
        "you rely on it."
    )


def _origin(results: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    return (
        f"Seed {results['config']['seed']}; {results['seconds_of_this_process']:,} s in the last process; "
        f"{environment.summary(dict(facts))}; hap2s_jax {facts['hap2s_jax']}, commit {facts['commit'] or 'unknown'}; "
        f"{environment.versions(facts)}."
    )


def _figures(results: Mapping[str, Any]) -> str:
    rows = {
        **results.get("baselines", {}),
        "untrained": results.get("untrained"),
        "pretrained backbone": results.get("as_it_comes"),
        "trained": results["test"],
    }
    systems = {name: row for name, row in rows.items() if row}
    # A line for each figure, since there are few systems and many figures.
    lines: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(name for row in systems.values() for name in row):
        counted = "_queries" in name
        lines[name] = {
            system: int(row[name]) if counted and row.get(name) is not None else row.get(name)
            for system, row in systems.items()
        }
    return to_markdown(lines, columns=list(systems)[-_MOST_SYSTEMS:]).strip()


def _definitions(test: Mapping[str, Any], protocols: tuple[str, ...]) -> list[str]:
    lines = [_RULES[name] for name in protocols if name in _RULES]
    wanted = {name if name in _DEFINITIONS else name.split("@")[0].split("-")[0] for name in test}
    return lines + [text for name, text in _DEFINITIONS.items() if name in wanted]
