"""Drills: what goes wrong on purpose, thousands of times, and what hap2s_jax makes of it.

    python experiments/drill.py --minutes=2
    python experiments/drill.py --parts=files,losses --seed=5 --seeds=2 --variants=1000 --lines=drill.jsonl

A part is a module of `drills/` with a function `trials(seed, folder)` that yields one `Trial` after another. A process
of its own carries them out: where one crashes or hangs, that is counted, and another process goes on behind it. The
table says how each kind ended; --lines=FILE has a line of JSON for every trial. The exit code is 1 if any trial ended
otherwise than well.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

PARTS = ("files", "damage", "losses", "images", "archives", "disk", "demo", "kills", "signals", "gallery")
# Longer than this is a hang, and more memory than this above an honest file's is too much.
SECONDS, BYTES = 10.0, 200 * 2**20
_START = 300.0  # until a part has made what it needs
ENDS = ("taken", "refused", "wrong", "traceback", "crash", "hang", "memory", "written")
WELL = ("taken", "refused")


class WrongError(Exception):
    """A result that is not what it must be."""


class Trial(NamedTuple):
    """One thing to try.

    Attributes:
      kind: the row of the table that it counts in.
      run: carries it out. Returns, perhaps a line about it, or raises a UserError of one line: both are well.
      folder: what lies in there must be the same files afterwards; None for any.
      is_warm_up: an honest case, whose memory is what that of the others is compared with, if there is one.
      seconds: after which it hangs.
    """

    kind: str
    run: Callable[[], object]
    folder: pathlib.Path | None = None
    is_warm_up: bool = False
    seconds: float | None = None


def outcome(trial: Trial) -> tuple[str, str]:
    """How a trial ended, one of ENDS, and a line about it."""
    from hap2s_jax.errors import UserError

    before = _listed(trial.folder)
    try:
        found = trial.run()
        end, line = "taken", found if isinstance(found, str) else ""
    except (UserError, OSError) as error:
        end, line = "refused", str(error)
        if "\n" in line or len(line) > 1000:
            end = "traceback"
    except WrongError as error:
        end, line = "wrong", str(error)
    except Exception:
        end, line = "traceback", traceback.format_exc()
    if _listed(trial.folder) != before:
        end, line = "written", f"{sorted(_listed(trial.folder) ^ before)}"
    return end, line


def _listed(folder: pathlib.Path | None) -> set[str]:
    return set() if folder is None else {str(path) for path in folder.rglob("*")}


def _worker(part: str, seed: int, skip: int, pipe: Any) -> None:
    """Carries out the trials of a part and a seed after the first `skip`, and sends how each began and ended."""
    trials = importlib.import_module(f"drills.{part}").trials
    honest = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, trial in enumerate(trials(seed, pathlib.Path(folder))):
            if number < skip and not trial.is_warm_up:
                continue
            pipe.send(("begin", number, trial.kind, trial.seconds))
            end, line = outcome(trial)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            if trial.is_warm_up:
                honest = max(honest, peak)
            elif honest and peak > honest + BYTES and end in WELL:
                end, line, honest = (
                    "memory",
                    f"{(peak - honest) / 2**20:.0f} MiB more than an honest file",
                    peak,
                )
            pipe.send(("end", end, line))
    pipe.send(("done", 0, ""))


def carried_out(part: str, seed: int, *, variants: int, share: float) -> Iterator[tuple[str, str, str]]:
    """(kind, end, line) for each trial of a part and a seed, whatever becomes of the processes that try them.

    Those that begin within `share` seconds after the first one.
    """
    until = time.monotonic() + _START
    context, number, seconds = multiprocessing.get_context("spawn"), -1, SECONDS
    while time.monotonic() < until and number < variants:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_worker, args=(part, seed, number + 1, theirs), daemon=True)
        process.start()
        theirs.close()
        kind, end = "", ""
        try:
            while time.monotonic() < until and number < variants:
                if not _came(ours, seconds if kind else _START):
                    end = "hang"
                    break
                what, *rest = ours.recv()
                if what == "done":
                    return
                if what == "begin":
                    until = time.monotonic() + share if number < 0 else until
                    number, kind, seconds = max(number, rest[0]), rest[1], rest[2] or SECONDS
                else:
                    yield kind, *rest
                    kind = ""
        except EOFError:
            end = "crash"
        process.kill()
        process.join()
        if end:
            yield (
                kind or "start",
                end,
                f"exit code {process.exitcode}" if end == "crash" else f"over {seconds:g} s",
            )
            if not kind:
                return


def _came(pipe: Any, seconds: float) -> bool:
    """Whether anything comes within `seconds`; those in which this process too stood still, as when a machine sleeps,
    do not count.
    """
    return any(pipe.poll(0.25) for _ in range(math.ceil(seconds / 0.25)))


def table(counts: dict[str, collections.Counter[str]]) -> Iterator[str]:
    """The counts as a table in Markdown."""
    yield f"| kind | trials | {' | '.join(ENDS)} |"
    yield f"|---|{'---:|' * (1 + len(ENDS))}"
    total: collections.Counter[str] = collections.Counter()
    for counted in counts.values():
        total += counted
    for kind, counted in [*sorted(counts.items()), ("all", total)]:
        yield f"| {kind} | {counted.total():,} | {' | '.join(f'{counted[end]:,}' for end in ENDS)} |"


def main(arguments: list[str] | None = None) -> int:
    """Runs the drills; returns 1 if any trial ended otherwise than well."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help=f"comma-separated: {', '.join(PARTS)}")
    parser.add_argument("--seed", "--first_seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--variants", type=int, default=10**9, help="at most, per part and seed")
    parser.add_argument("--minutes", type=float, default=2.0, help="for all parts together, once they begin")
    parser.add_argument("--lines", default=os.devnull, metavar="FILE", help="a line of JSON for every trial")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown part {min(unknown)!r}; known: {', '.join(PARTS)}")
    share = options.minutes * 60 / (len(parts) * options.seeds)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with open(options.lines, "w") as lines:
        for part, seed in itertools.product(parts, range(options.seed, options.seed + options.seeds)):
            for kind, end, line in carried_out(part, seed, variants=options.variants, share=share):
                counts[f"{part}: {kind}"][end] += 1
                record = {"part": part, "seed": seed, "kind": kind, "end": end, "line": line}
                lines.write(json.dumps(record) + "\n")
                lines.flush()
                if end not in WELL:
                    print(f"{part}, seed {seed}, {kind}: {end}\n{line}", file=sys.stderr)
    print(*table(counts), sep="\n")
    return int(any(counted[end] for counted in counts.values() for end in ENDS if end not in WELL))


if __name__ == "__main__":
    import drill  # whose errors are those that the parts raise

    sys.exit(drill.main())
