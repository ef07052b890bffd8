"""A report of the memory and estimated speed of a config's programs, compiled for absent TPUs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_collections

from hap2s_jax.data import registry, splits, turns
from hap2s_jax.distributed import tpu
from hap2s_jax.distributed.tpu import Compiled, DoesNotFitError, Topology
from hap2s_jax.errors import UserError
from hap2s_jax.run.compiled import Rehearsal
from hap2s_jax.run.config import Config
from hap2s_jax.run.learner import Learner
from hap2s_jax.run.settle import settle

REMARK = (
    "Memory is the compiler's own plan and binding. Times are its estimates: no program has run, and nobody has "
    "waited for data, for other chips or for the host. Trust ratios more than values."
)
_SMALLEST_SLICE = 8


def rehearse(
    config: Config,
    topology_name: str,
    *,
    num_classes: int | None = None,
    effort: float = -1.0,
    largest: bool = True,
    scaling: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compiles a config's programs for a TPU slice, reports the result and returns it.

    Args:
      config: as `hap2s_jax/run/schema.py` describes it.
      topology_name: one of `tpu.names()`.
      num_classes: training classes, where the registry of data sets does not know them.
      effort: see `tpu.compile_for`.
      largest: whether to find the largest batch that fits.
      scaling: whether to compile the loss for all slices of the generation.
      say: gets each line as it comes.

    Raises:
      UserError: an unknown topology, no compiler, or a config that does not suit the slice.
    """
    frozen: Any = ml_collections.FrozenConfigDict(config)
    config = ml_collections.ConfigDict(frozen)
    for note in settle(config):
        say(note)
    learner = Learner.create(config)
    if scaling and not learner.losses["metric"].has_blocks:
        raise UserError(
            f"--scaling compares the loss whole and in blocks, in which {config.loss.name} cannot be computed; leave "
            "it out"
        )
    topology = tpu.topology(topology_name)
    subject = Rehearsal(learner, topology, _training_classes(config, num_classes), effort)
    n, batch = len(topology.devices), learner.batch_size
    topology.parallel.check_batch(batch, config.batch.pieces)
    say(
        f"{config.name} on {topology.name}: {n} chips ({topology.devices[0].device_kind}), {topology.hosts} hosts"
    )
    say(
        f"global batch {batch:,} ({config.batch.classes} classes x {config.batch.images_per_class} images), "
        f"{batch // n:,} images a chip, {config.encoder.name} in {config.encoder.dtype}, loss {config.loss.name}"
    )
    figures: dict[str, Any] = {"topology": topology.name, "chips": n, "hosts": topology.hosts, "batch": batch}
    try:
        step = subject.train_step(batch)
    except DoesNotFitError as e:
        say(f"train step: {e}")
        step = None
    if step is not None:
        figures |= _report_step(subject, step, batch, say)
        if config.encoder.get("dtype") == "float32" and ":" not in config.encoder.name:
            figures["bfloat16"] = _report_bfloat16(subject, step, say)
    images, embed = subject.embed_step()
    say(
        f"embed step, {images} images a host: {_memory(embed, topology)}; "
        f"{embed.seconds * 1e3:.3g} ms, {images * topology.hosts / embed.seconds:,.0f} images/s"
    )
    figures["embed"] = dataclasses.asdict(embed)
    if largest:
        figures["largest_batch"] = _report_largest(subject, batch if step else None, step, say)
    if scaling:
        figures["scaling"] = _report_scaling(subject, step, say)
    say(REMARK)
    return figures


def _report_step(
    subject: Rehearsal, step: Compiled, batch: int, say: Callable[[str], None]
) -> dict[str, Any]:
    topology = subject.topology
    n, chip = len(topology.devices), topology.chip
    loss = subject.loss(topology, batch // n)
    link = step.link_seconds(chip, n)
    say(f"train step, per chip: {_memory(step, topology)}")
    say(
        f"  {step.flops / 1e9:,.1f} GFLOP and {step.bytes_accessed / 1e9:,.2f} GB of memory traffic a step; "
        f"{step.seconds * 1e3:.3g} ms by the compiler's estimate, {batch / step.seconds:,.0f} images/s in all, "
        f"{step.flops / step.seconds / chip.flops:.0%} of the chip's bfloat16 peak"
    )
    say(
        f"  the loss and its gradient alone: {loss.seconds * 1e3:.3g} ms, {loss.seconds / step.seconds:.2%} of the "
        f"time, {loss.flops / step.flops:.2%} of the FLOPs"
    )
    moved = ", ".join(
        f"{count} {kind} of {size / 1e6:,.2f} MB" for kind, (count, size) in sorted(step.collectives.items())
    )
    say(
        f"  collectives: {moved or 'none'}; {link * 1e3:.3g} ms at the links' full speed, "
        f"{link / step.seconds:.1%} of the time where nothing hides them"
    )
    return {
        "train": dataclasses.asdict(step),
        "loss": dataclasses.asdict(loss),
        "link_seconds": link,
        "images_per_second": batch / step.seconds,
    }


def _report_bfloat16(subject: Rehearsal, step: Compiled, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Reports the same step with the encoder in bfloat16; None, and no report, if it does not fit."""
    config: Config = ml_collections.ConfigDict(subject.learner.config)
    config.encoder.dtype = "bfloat16"
    narrow = dataclasses.replace(subject, learner=Learner.create(config))
    try:
        found = narrow.train_step(narrow.learner.batch_size)
    except DoesNotFitError:
        return None
    say(
        f"  with encoder.dtype=bfloat16: {found.seconds * 1e3:.3g} ms a step in place of {step.seconds * 1e3:.3g}, "
        f"{found.hbm / 2**30:,.2f} GiB in place of {step.hbm / 2**30:,.2f}"
    )
    return dataclasses.asdict(found)


def _report_largest(
    subject: Rehearsal, known: int | None, step: Compiled | None, say: Callable[[str], None]
) -> int:
    """Reports the largest multiple of K times chips that compiles."""
    config, unit, hbm = subject.learner.config, subject.step_unit, subject.topology.chip.hbm
    # A device's share must divide into the pieces.
    pieces = config.batch.pieces
    unit *= pieces // math.gcd(pieces, config.batch.images_per_class)
    tried: dict[int, int | None] = {}

    def fits(units: int) -> tuple[bool, float | None]:
        try:
            done = step if step and units * unit == known else subject.train_step(units * unit)
        except DoesNotFitError as e:
            tried[units] = None
            return False, e.needed
        tried[units] = done.hbm
        return True, done.hbm

    start = max((known or unit) // unit, 1)
    if step is not None and step.temporaries > 0:
        # Temporaries grow with the batch; the state does not.
        start = max(int(start * (0.9 * hbm - step.arguments - step.code) / step.temporaries), 1)
    units = tpu.largest(fits, start, hbm)
    if units == 0:
        say(f"not even a global batch of {unit:,} images fits; set batch.pieces or encoder.remat_stages")
        return 0
    say(
        f"largest batch that fits: {units * unit:,} images, {units * unit // len(subject.topology.devices):,} a chip; "
        f"{(units + 1) * unit:,} does not ({len(tried)} compilations)"
    )
    classes = units * unit // config.batch.images_per_class
    if classes > subject.num_classes:
        say(
            f"  but the data has {subject.num_classes} classes: raise batch.images_per_class for more than "
            f"{subject.num_classes * config.batch.images_per_class:,} images"
        )
    return units * unit


def _report_scaling(
    subject: Rehearsal, step: Compiled | None, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Reports the loss for growing global batches, with a constant number of images a chip."""
    generation = subject.topology.name.partition(":")[0]
    share = subject.learner.batch_size // len(subject.topology.devices)
    say(
        f"the loss when the slice grows, {share} images a chip: time and memory of the loss, with its matrix whole, "
        "and in blocks"
    )
    say(
        f"{'slice':>14}{'chips':>7}{'batch':>11}{'whole ms':>11}{'MB':>9}{'blocks ms':>11}{'MB':>9}{'of step':>9}"
    )
    rows = []
    alone = subject.loss(subject.topology, share) if step else None
    for name in tpu.names(generation):
        topology = tpu.topology(name)
        n = len(topology.devices)
        if n < _SMALLEST_SLICE:
            continue
        row: dict[str, Any] = {"topology": name, "chips": n, "batch": n * share}
        cells = []
        for kind, size in (("whole", "never"), ("blocks", max(share // 8, 1))):
            try:
                done = subject.loss(topology, share, block_size=size)
            except DoesNotFitError:
                row[kind] = None
                cells.append(f"{'does not':>11}{'fit':>9}")
            else:
                row[kind] = dataclasses.asdict(done)
                cells.append(f"{done.seconds * 1e3:>11.4g}{done.temporaries / 1e6:>9,.1f}")
        best = min((row[k]["seconds"] for k in ("whole", "blocks") if row[k]), default=math.nan)
        part = best / (step.seconds - alone.seconds + best) if step and alone else math.nan
        row["share_of_step"] = part
        say(f"{name:>14}{n:>7,}{n * share:>11,}{cells[0]}{cells[1]}{part:>9.2%}")
        rows.append(row)
    return rows


def _memory(compiled: Compiled, topology: Topology) -> str:
    """A few words about memory."""
    parts = ", ".join(
        f"{name} {size / 2**30:,.2f}"
        for name, size in (
            ("arguments", compiled.arguments),
            ("temporaries", compiled.temporaries),
            ("program", compiled.code),
        )
    )
    return f"{compiled.hbm / 2**30:,.2f} of {topology.chip.hbm / 2**30:,.0f} GiB, fits ({parts})"


def _training_classes(config: Config, given: int | None) -> int:
    """Number of training classes, without reading data other than the shipped ones."""
    if given is not None:
        return given
    entry = registry.entry(config.data.name)
    if entry.name == "emoji":
        from hap2s_jax.data import emoji

        # This data set has its own validation classes, whatever the fraction.
        upright = registry.num_classes(emoji.load().train)
    else:
        counted = entry.counts.get("classes")
        if not isinstance(counted, int):
            raise UserError(f"how many classes {entry.name} has is not known beforehand; give --classes")
        upright = counted - len(splits.validation_classes(counted, config.data.validation_fraction, 0))
    return upright * (turns.TURNS if config.data.quarter_turns else 1)
