"""Keeps a growing gallery of individuals: add images, review the new ones, and train again on your decisions.

    python -m hap2s_jax.gallery create animals --workdir=runs/emoji
    python -m hap2s_jax.gallery add animals --images=photos.csv
    python -m hap2s_jax.gallery review animals
    python -m hap2s_jax.gallery export animals --output=animals.csv --train
    python -m hap2s_jax.gallery re_embed animals --workdir=runs/animals

A store, here `animals`, is a folder in LanceDB's format (the extra "gallery"); there is no server. The log of decisions
only grows: `undo` adds an opposite entry, and leaves later decisions alone. docs/gallery.md shows every step.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence

import numpy as np

from hap2s_jax import cli, extras
from hap2s_jax.catalogue import adding, exporting, moving, review, reviewed
from hap2s_jax.catalogue.columns import shown_id
from hap2s_jax.catalogue.flags import FLAGS, SWITCHES
from hap2s_jax.catalogue.searching import Finder
from hap2s_jax.catalogue.state import Decision
from hap2s_jax.catalogue.store import Store
from hap2s_jax.data.places import local
from hap2s_jax.errors import UserError, require, shown, unknown_name
from hap2s_jax.reporting import outputs
from hap2s_jax.search import verdict
from hap2s_jax.serving import commands, gate, index
from hap2s_jax.serving.trained import TrainedEncoder

_LISTED = 5


def _open(options: argparse.Namespace) -> Store:
    return Store(options.store, pictures=getattr(options, "pictures", None))


def _finder(options: argparse.Namespace, store: Store) -> Finder:
    return Finder(store, kind=options.index, cache=index.cache_of(options.store))


def _encoder(options: argparse.Namespace, store: Store) -> TrainedEncoder:
    """The encoder that the store is of, unless the flags say otherwise."""
    ours = store.encoder
    if options.checkpoint is None and options.average is None and options.workdir is None:
        options.checkpoint, options.average = ours.get("step"), ours.get("average")
    workdir = commands.workdir_of(options, options.store, str(ours.get("workdir")))
    encoder = commands.open_encoder(options, workdir)
    adding.check_encoder(store, encoder.describe())
    return encoder


def _create(options: argparse.Namespace) -> None:
    """Creates an empty store for the embeddings of an encoder."""
    encoder = commands.open_encoder(options)
    Store.create(options.store, encoder)
    print(f"{options.store}: for {encoder.dim} numbers of step {encoder.step} of {encoder.workdir}")


def _add(options: argparse.Namespace) -> None:
    """Adds the images of a folder, CSV, .npz or .parquet that are new by path and by content."""
    store = _open(options)
    embedded = local(options.images).suffix in (".npz", ".parquet")
    encoder = None if embedded else _encoder(options, store)
    how = {"columns": options.columns, "batch_size": options.batch_size}
    added = adding.add(store, options.images, encoder, **how, tell=lambda line: print(f"note: {shown(line)}"))
    for path, why in added.left_out[:_LISTED]:
        print(shown(f"left out: {path}: {why}"))
    print(f"{added.new:,} images are new, {added.known:,} known, {len(added.left_out):,} left out")
    print(f"{len(store.queue()):,} wait for a decision")


def _chosen(options: argparse.Namespace, store: Store) -> list[int | str]:
    """The images that --image and --where name."""
    if options.where:
        return store.ids[store.usable & store.where(options.where)].tolist()
    if not options.image:
        raise cli.UsageError("name images with --image (paths or ids), or with --where")
    return options.image


def _remove(options: argparse.Namespace) -> None:
    """Takes images out; adding them again does not bring them back."""
    _decide(options, lambda store: store.mark(_chosen(options, store), "removed", by=options.by))


def _relabel(options: argparse.Namespace) -> None:
    """Gives images another individual's name, or a new one."""
    _decide(options, lambda store: store.relabel(_chosen(options, store), options.label, by=options.by))


def _merge(options: argparse.Namespace) -> None:
    """Merges several individuals, --individual, into one, --label."""
    _decide(options, lambda store: store.merge(options.individual, options.label, by=options.by))


def _split(options: argparse.Namespace) -> None:
    """Makes some images of an individual a separate individual."""
    _decide(options, lambda store: store.split(_chosen(options, store), options.label, by=options.by))


def _decide(options: argparse.Namespace, write: Callable[[Store], int]) -> None:
    store = _open(options)
    write(store)
    (entry,) = store.history(1)
    print(shown(f"decision {_line(entry)}; `undo` takes it back"))


def _line(d: Decision) -> str:
    undoes = f" of {d.undoes}" if d.undoes else ""
    return f"{d.number:>6}  {d.time}  {d.by or '-'}  {d.kind}{undoes}  {d.label or '-'}  {d.images:,} images"


def _list(options: argparse.Namespace) -> None:
    """Lists individuals, or with --where images and their ids."""
    store = _open(options)
    if options.where:
        for row in np.flatnonzero(store.usable & store.where(options.where))[: options.k]:
            print(
                shown(
                    f"{shown_id(int(store.ids[row]))}  {store.name_of(row) or '-'}  {store.text('path', row)}"
                )
            )
        return
    individuals = store.individuals()
    for name, count in list(individuals.items())[: options.k]:
        print(shown(f"{count:>6}  {name}"))
    print(
        f"{len(store.ids):,} images, {len(individuals):,} individuals, {len(store.queue()):,} images wait, "
        f"{store.last:,} decisions; step {store.encoder.get('step')} of {store.encoder.get('workdir')}"
    )


def _search(options: argparse.Namespace) -> None:
    """Finds the individuals, or images, that are most like a query."""
    store = _open(options)
    threshold, words = reviewed.choose_threshold(store, options.threshold, options.false_accepts)
    embeddings = _encoder(options, store)(options.query)
    finder = _finder(options, store)
    answers = finder.search(embeddings, options.k, per=options.per, where=options.where)
    for query, matches in zip(options.query, answers, strict=True):
        fine = [m for m in matches if threshold is None or m.distance <= threshold]
        print(shown(f"{query}: {verdict(next(iter(matches), None), threshold)}"))
        for match in matches:
            mark = " " if match in fine else "x"
            print(shown(f"  {mark} {match.distance:>9.4f}  {match.label or '-'}  {match.path}"))
    print(words)


def _group(options: argparse.Namespace) -> None:
    """Sorts unreviewed images into likely individuals."""
    store = _open(options)
    threshold, words = reviewed.choose_threshold(store, options.threshold, options.false_accepts)
    if threshold is None:
        raise UserError(f"group needs a threshold, and there is {words}")
    groups = _finder(options, store).group(threshold, where=options.where)
    for group in [g for g in groups if len(g.rows) > 1][: options.k]:
        print(f"{len(group.rows)} images, {group.sure:.0%} of pairs within the threshold:")
        print(
            *(shown(f"  {shown_id(int(store.ids[row]))}  {store.text('path', row)}") for row in group.rows),
            sep="\n",
        )
    print(f"{sum(len(g.rows) == 1 for g in groups):,} images stand alone; {words}")


def _export(options: argparse.Namespace) -> None:
    """Writes a CSV (for training with --train), .npz or .parquet file."""
    outputs.check(options)
    more = {"where": options.where, "train": options.train, "test_fraction": options.test_fraction}
    count = exporting.export(_open(options), options.output, **more)
    print(f"{count:,} images: {options.output}")
    if options.train:
        print(
            "python -m hap2s_jax.main --config=configs/folder.py "
            f"--config.data.data_dir={shlex.quote(options.output)} "
            "--workdir=RUN trains on them"
        )


def _history(options: argparse.Namespace) -> None:
    """Lists the newest decisions."""
    for entry in _open(options).history(options.k):
        print(shown(_line(entry)))


def _undo(options: argparse.Namespace) -> None:
    """Takes back a decision, but leaves later decisions alone."""
    number, overtaken = _open(options).undo(options.number, by=options.by)
    print(
        f"decision {number} undoes it"
        + f"; {overtaken:,} images had been decided about later" * (overtaken > 0)
    )


def _re_embed(options: argparse.Namespace) -> None:
    """Moves the store to another encoder, and compares both encoders on the reviewed images."""
    store = _open(options)
    before = reviewed.replay(store).rank_1()
    moved = moving.re_embed(store, commands.open_encoder(options), batch_size=options.batch_size)
    after = reviewed.replay(store).rank_1()
    print(
        f"{moved.total:,} images, {moved.embedded:,} embedded now; the earlier embeddings stay in the store"
    )
    for name, (found, count) in (("before", before), ("after", after)):
        share = f" ({found / max(count, 1):.1%})"
        print(f"rank-1 on the reviewed images of known individuals, {name}: {found:,} of {count:,}{share}")


def _threshold_command(options: argparse.Namespace) -> None:
    """Chooses and stores the threshold, and checks the previous one."""
    store = _open(options)
    if line := reviewed.kept_promise(store):
        print(line)
    threshold, words = reviewed.choose_threshold(store, options.threshold, options.false_accepts)
    print(words)
    if threshold is not None:
        reviewed.promise(store, threshold, options.false_accepts)


def _review(options: argparse.Namespace) -> None:
    """Serves the web page for reviewing new images."""
    extras.require("gallery review", "demo")
    gate.check_shown(options.host, options.pictures, "--pictures")
    store = _open(options)
    threshold, words = reviewed.choose_threshold(store, options.threshold, options.false_accepts)
    page = review.build(review.Review(_finder(options, store), threshold), words)
    review.launch(page, host=options.host, port=options.port)


_ENCODER = "encoder"
_CHOICE = ("threshold", "false_accepts")

# What each does, and its flags.
SUBCOMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], tuple[str, ...]]] = {
    "create": (_create, (_ENCODER,)),
    "add": (_add, (_ENCODER, "images", "columns", "batch_size")),
    "list": (_list, ("where", "k")),
    "search": (_search, (_ENCODER, "query", "k", "per", "where", *_CHOICE, "index")),
    "review": (_review, (*_CHOICE, "index", "pictures", "host", "port")),
    "group": (_group, ("where", "k", *_CHOICE, "index")),
    "relabel": (_relabel, ("image", "where", "label", "by")),
    "merge": (_merge, ("individual", "label", "by")),
    "split": (_split, ("image", "where", "label", "by")),
    "remove": (_remove, ("image", "where", "by")),
    "history": (_history, ("k",)),
    "undo": (_undo, ("number", "by")),
    "export": (_export, ("output", "overwrite", "where", "train", "test_fraction", "pictures")),
    "re_embed": (_re_embed, (_ENCODER, "batch_size", "pictures")),
    "threshold": (_threshold_command, _CHOICE),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns its exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("--help", "-h"):
        return cli.ended(lambda: print(_help()))
    given, name = name, name.replace("-", "_")
    if name not in SUBCOMMANDS:
        print(f"error: {shown(str(unknown_name('subcommand', given, SUBCOMMANDS)))}", file=sys.stderr)
        return 2
    work, flags = SUBCOMMANDS[name]
    parser = cli.Parser(f"gallery {name}", work.__doc__)
    parser.add_argument("store", help="a folder made by `create`")
    for flag in flags:
        if flag == _ENCODER:
            needed = name in ("create", "re_embed")
            more = "" if needed else "; by default the one that embedded the store"
            commands.add_encoder(parser, required=needed, where=more)
        elif flag in SWITCHES:
            parser.add_switch(flag, default=False, help=SWITCHES[flag])
        else:
            parser.add_argument(f"--{flag}", **FLAGS[flag])

    def run(options: argparse.Namespace) -> None:
        extras.require("gallery", "gallery")
        if "k" in flags:
            require(options.k > 0, "--k", options.k, "at least 1")
        work(options)

    return cli.start(run, parser, rest, interrupted="interrupted; the same command goes on where it stopped")


def _help() -> str:
    lines = [
        f"  {name:<{max(map(len, SUBCOMMANDS))}}  {work.__doc__}" for name, (work, _) in SUBCOMMANDS.items()
    ]
    usage = "usage: python -m hap2s_jax.gallery SUBCOMMAND STORE [--help] [--flag=value ...]"
    return "\n".join([usage, "", (__doc__ or "").strip(), "", *lines])


if __name__ == "__main__":
    sys.exit(main())
