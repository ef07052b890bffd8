"""Reports of a run for people: lines on the terminal, a table, ``results.json`` and pictures."""

from __future__ import annotations

import json
import math
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from hap2s_jax import formats
from hap2s_jax.data.registry import num_classes
from hap2s_jax.data.source import Dataset
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation import raw_pixels
from hap2s_jax.reporting import card, environment
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.reporting.metric_log import MetricLog, read_metrics, write_csv
from hap2s_jax.reporting.table import print_metrics
from hap2s_jax.run.pictures import draw
from hap2s_jax.run.trainer import Trainer
from hap2s_jax.serving import calibration
from hap2s_jax.serving.trained import fingerprint
from hap2s_jax.training.state import TrainState

RESULTS = "results.json"

# Columns of the final table, in this order, if they were measured.
COLUMNS = (
    "mAP",
    "rank-1",
    "rank-5",
    "recall@1",
    "recall@2",
    "recall@4",
    "recall@8",
    "map@r",
    "r_precision",
    "nmi",
    "closed_set_top-1",
    "closed_set_top-5",
    "closed_set_balanced_accuracy",
    "closed_set_mAP",
    "dir@1e-01",
    "in_shop_recall@1",
    "multi_query_mAP",
    "multi_query_rank-1",
    "single_gallery_shot_rank-1",
)


def say(text: str) -> None:
    """Prints a line for the person at the terminal."""
    print(text, flush=True)


def announce(trainer: Trainer, state: TrainState, workdir: pathlib.Path) -> None:
    """Prints what is about to run, with which settings and where."""
    if not trainer.parallel.is_lead:
        return
    data = trainer.dataset
    parts = [("train", data.train), ("validation", data.validation), ("test", data.test)]
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    parts += [(f"test on {target.name}", target.test) for target in data.targets[1:]]
    sizes = "; ".join(
        f"{name} {len(s):,} images of {num_classes(s):,} classes" for name, s in parts if s is not None
    )
    say(f"{data.name}: {sizes}")
    for remark in data.remarks:
        say(f"warning: {remark}")
    if trainer.noise is not None:
        say(trainer.noise.describe())
    say(f"batches: {trainer.plan.describe()}")
    say(f"loss {trainer.config.loss.name}, encoder {trainer.config.encoder.name}, {parameters:,} parameters")
    say(f"on {environment.summary()}")
    if trainer.config.encoder.get("dtype") == "float32" and jax.default_backend() in ("gpu", "tpu"):
        # 92.8 ms and 8.8 GiB become 49.6 and 4.6 (sop on v5e:2x4, by the TPU compiler's estimate)
        say("encoder in float32; --config.encoder.dtype=bfloat16 about halves a TPU's time and memory")
    say(f"in {workdir}")


def finish(
    trainer: Trainer,
    state: TrainState,
    workdir: pathlib.Path,
    log: MetricLog,
    *,
    last_step: int,
    seconds: float,
) -> dict[str, Any]:
    """Measures the chosen weights on the test classes, writes and draws the results, and prints the table.

    Args:
      trainer: the run's objects.
      state: the weights to report.
      workdir: where to write.
      log: the run's log, which gets the test metrics.
      last_step: completed updates.
      seconds: what this process has spent on the run so far.
    """
    test = trainer.dataset.test
    embeddings, pixels, present = trainer.embed_with_pixels(trainer.variables(state), test)
    measured = trainer.measure(embeddings, present, test)
    log.write(last_step, measured, part="test")
    others = trainer.measure_others(trainer.variables(state))
    held_out = (
        None if trainer.dataset.validation is None else trainer.embeddings(state, trainer.dataset.validation)
    )
    baselines = {name: dict(values) for name, values in trainer.dataset.baselines.items()}
    if pixels is not None:  # on every process, since they share the queries
        baselines[raw_pixels.NAME] = trainer.measure(
            pixels, present, test, distance="euclidean", cluster=False
        )
    if not trainer.parallel.is_lead:
        return {"test": measured}
    log.flush()
    records = read_metrics(workdir)
    results = {
        "test": measured,
        "tests": _by_set(trainer.dataset, measured, others),
        "validation": _last(records, "validation/", int(state.step)),
        "untrained": _last(records, "test/", 0),
        "as_it_comes": _last(records, "as_it_comes/", 0),
        "baselines": baselines,
        "weights_of_step": int(state.step),
        "steps": last_step,
        "seconds_of_this_process": round(seconds, 1),
        "peak_memory": environment.peak_memory(),
        "environment": environment.describe(),
        "config": trainer.config.to_dict(),
    }
    results = formats.stamped(_without_nan(results))
    print_results(results)
    for remark in (*card.saturation(results, records), *trainer.remarks(test), *trainer.remarks_on_others()):
        say(f"note: {remark}")
    _write_card(trainer, state, results, held_out, workdir)
    write_csv(workdir)
    try:
        draw(trainer, embeddings, present, workdir)
    except UserError:
        raise
    except Exception as error:  # a failed picture must not lose the figures
        say(f"warning: not all pictures could be drawn: {error!r}")
    _conclude(workdir, results, log)
    return results


def _conclude(workdir: pathlib.Path, results: Mapping[str, Any], log: MetricLog) -> None:
    """Writes the results last, since they mark the run as finished, and prints how to go on."""
    with replacing(workdir / RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=2, default=list, allow_nan=False) + "\n")
    log.attach_files()
    say(f"open model_card.md, retrievals.png and curves.png in {workdir}")
    where = shlex.quote(f"--workdir={workdir}")
    say(f"next: python -m hap2s_jax.embed {where} --images=FOLDER --output=gallery.npz")


def _write_card(
    trainer: Trainer,
    state: TrainState,
    results: Mapping[str, Any],
    held_out: tuple[np.ndarray, np.ndarray] | None,
    workdir: pathlib.Path,
) -> None:
    """Calibrates the threshold on the embedded validation classes, and writes the model card."""
    variables, threshold = trainer.variables(state), None
    if held_out is not None and trainer.dataset.validation is not None:
        try:
            images = calibration.Labelled.of_source(trainer, trainer.dataset.validation, *held_out)
            classes = f"validation classes of {trainer.dataset.name}"
            rates = calibration.write(images, trainer.config, variables, workdir, int(state.step), classes)
            chosen, distance = rates.default(), trainer.config.evaluate.distance
            if chosen is None:
                threshold = f"None: {rates.too_few()}."
                say(f"no threshold for searching: {rates.too_few()}")
            else:
                threshold = (
                    f"A query has no match beyond a {distance} distance of {chosen:.4f}. On the validation classes, "
                    f"against {rates.gallery:,} images: {rates.describe(chosen)}. Larger galleries have more false "
                    f"accepts. Fingerprint of the weights: {fingerprint(variables, trainer.config)}."
                )
        except UserError as error:
            say(f"no threshold for searching: {error}")
    data = trainer.dataset
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    text = card.model_card(
        results,
        data={
            name: {"images": len(source), "classes": num_classes(source)}
            for name, source in parts.items()
            if source is not None
        },
        protocols=data.protocols,
        seen_classes=len(data.seen_classes),
        parameters=sum(x.size for x in jax.tree.leaves(variables["params"])),
        threshold=threshold,
    )
    with replacing(workdir / card.FILE_NAME) as temporary:
        temporary.write_text(text)


def is_finished(workdir: pathlib.Path, step: int) -> bool:
    """Whether the results in `workdir` are of `step` updates; older results stay while a run goes on.

    Raises:
      UserError: a later version wrote them.
    """
    try:
        return formats.read(workdir / RESULTS, config="config")["steps"] == step
    except formats.NewerFormatError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return False


def already_finished(workdir: pathlib.Path, steps: int, *, is_lead: bool) -> dict[str, Any]:
    """Prints that nothing is left to do, shows the results again and returns them."""
    results = formats.read(workdir / RESULTS, config="config")
    if is_lead:
        say(
            f"{workdir} holds a finished run of {steps} steps; raise --config.steps to continue (at the rates of "
            "a schedule over so many steps), or use another --workdir"
        )
        print_results(results)
    return results


def print_results(results: Mapping[str, Any]) -> None:
    """Prints the final table of a run's results."""
    rows = {
        **results["baselines"],
        "untrained": results["untrained"],
        "pretrained backbone": results["as_it_comes"],
        f"trained, step {results['weights_of_step']}": results["test"],
    }
    if results.get("tests"):
        *_, trained = rows
        del rows[trained]
        first = next(iter(results["tests"]))
        rows = {f"{name}, on {first}": figures for name, figures in rows.items() if figures}
        rows |= {f"trained, on {name}": figures for name, figures in results["tests"].items()}
    known = {name: {k: v for k, v in values.items() if v is not None} for name, values in rows.items()}
    rows = {name: values for name, values in known.items() if values}
    columns = [c for c in COLUMNS if any(c in values for values in rows.values())]
    title = f"Retrieval on the test classes; step {results['weights_of_step']} of {results['steps']}"
    print_metrics(rows, columns=columns, title=f"{title}, {card.chosen_by(results)}")


def _by_set(
    data: Dataset, first: dict[str, float], others: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Figures by data set, if there are several to test on, and their mean if all have the same protocols."""
    if not others:
        return {}
    found = {data.targets[0].name: first, **others}
    if len({target.protocols for target in data.targets}) == 1:
        shown = [name for name in COLUMNS if all(name in figures for figures in found.values())]
        found["average"] = {k: float(np.mean([f[k] for f in found.values()])) for k in shown}
    return found


def _without_nan(value: Any) -> Any:
    """Replaces NaN by None, since JSON has no NaN: a mean over no queries becomes null."""
    if isinstance(value, Mapping):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _last(records: list[dict[str, float]], prefix: str, step: int) -> dict[str, float]:
    """The metrics under `prefix` that were logged at `step`."""
    found = {}
    for record in records:
        if record["step"] == step:
            found |= {name.removeprefix(prefix): v for name, v in record.items() if name.startswith(prefix)}
    return found
