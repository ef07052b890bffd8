"""Digests notice whatever becomes of a file, and those of earlier versions are checked as they were made."""

from __future__ import annotations

import json
import time
import zlib

import numpy as np
import pytest

from hap2s_jax.training import digests, sums

SIZE = (
    2**23 + 2**20 + 1000 * 8 + 3
)  # more than a block, more than its pieces, and some bytes that fill no column


def _swapped(data, one, other):
    words = data[: len(data) // 8 * 8].view(np.uint64)
    words[[one, other]] = words[[other, one]]


def _shifted(data, one, other):
    words = data[: len(data) // 8 * 8].view(np.uint64)
    words[one] += np.uint64(1)
    words[other] -= np.uint64(1)


def _flipped(data, place, bit):
    data[place] ^= np.uint8(1 << bit)


@pytest.mark.parametrize("kind", ["sums", "crc32"])
def test_flips_swaps_and_what_cancels_out_are_noticed(tmp_path, kind):
    random = np.random.default_rng(0)
    data = random.integers(0, 256, SIZE, np.uint8)
    (tmp_path / "_CHECKPOINT_METADATA").write_text("{}")
    (tmp_path / "d").write_bytes(data)
    digests.write(tmp_path)
    if kind == "crc32":  # of every 8 MiB
        kept = json.loads((tmp_path / "digests.json").read_text())["sums"]
        blocks = [zlib.crc32(data[begin : begin + 2**23].tobytes()) for begin in range(0, SIZE, 2**23)]
        kept["d"] = [SIZE, *(f"{block:08x}" for block in blocks)]
        (tmp_path / "digests.json").write_text(json.dumps({"crc32": kept}))
    assert digests.fault(tmp_path) is None
    row = 2**20 // 64 // 8  # words in a row of a piece
    changes = [
        (_flipped, SIZE - 1, 0),
        (_flipped, 0, 7),
        *((_flipped, random.integers(SIZE), 3) for _ in range(3)),
    ]
    changes += [
        (change, 5, other) for change in (_swapped, _shifted) for other in (6, 5 + row, 2**17 + 5, 2**20 + 5)
    ]
    for change, one, other in changes:
        damaged = data.copy()
        change(damaged, one, other)
        (tmp_path / "d").write_bytes(damaged)
        assert digests.fault(tmp_path) == "d is not what was saved", (change, one, other)


def test_digests_made_ahead_count_for_files_that_are_as_they_were(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "_CHECKPOINT_METADATA").write_text("{}")
    folder = tmp_path / "state" / "d"
    folder.mkdir(parents=True)
    for name in ("same", "changed", "gone", "unfinished.__lock"):
        (folder / name).write_bytes(random.bytes(SIZE))
    ahead, until = sums.Ahead(lambda: [tmp_path]), time.monotonic() + 60
    while len(ahead._made) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    (folder / "changed").write_bytes(random.bytes(SIZE))
    (folder / "gone").unlink()
    made = ahead.made(tmp_path)
    assert set(made) == {"state/d/same"}
    digests.write(tmp_path, made)
    assert digests.fault(tmp_path) is None
    (folder / "same").write_bytes(random.bytes(SIZE))
    assert "state/d/same is not what was saved" in digests.fault(tmp_path)
