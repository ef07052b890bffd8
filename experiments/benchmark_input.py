"""How fast is the input pipeline, and where does the time go?

    python experiments/benchmark_input.py                 # a few minutes; writes results/benchmark_input.json
    python experiments/benchmark_input.py --tiny          # seconds, for tests
    python experiments/benchmark_input.py --only=packed   # one of its parts; the file's others stay

Four questions, each on generated JPEG files:

- Throughput: images per second of the whole pipeline (read, decode, augment, batch) against reading and bare
  `tf.io.decode_jpeg` of the same files on the same cores; at 224x224 from CUB-sized files, at 256x128 from
  Market-sized ones. The two take turns, so that a busy machine slows both alike; ratios are medians over turns.
  Images per second of processor time hardly depend on what else the machine does.
- Profile: microseconds of processor time per image of each stage, on one thread.
- Scale: memory and time to the first batch of a source like Stanford Online Products and of a million images, at
  step 0 and at step 1,000,000.
- Packed: a million images of 96 x 96, packed, against the same as loose files: from the disk, and from a server of a
  bucket on this machine that answers 20 ms late (`bench/packed.py`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from bench import packed

from hap2s_jax.data.augment import DRAWS, Augmentation
from hap2s_jax.data.batches import Reading, train_batches
from hap2s_jax.data.draws import uniforms
from hap2s_jax.data.images import CACHE_BYTES, DecodedImages
from hap2s_jax.data.pixels import Window, cut, decode_whole, image_shape, reduction
from hap2s_jax.data.pk import PKPlan
from hap2s_jax.data.readers.files import FileSource
from hap2s_jax.data.tf.quiet import tf
from hap2s_jax.reporting import environment
from hap2s_jax.reporting.table import to_markdown

# Name: files of (height, width), images and classes of the training set, P, K, (height, width) of the encoder.
SETTINGS: dict[str, dict[str, Any]] = {
    "cub": {
        "files": (375, 500),
        "images": 5864,
        "classes": 100,
        "batch": (28, 4),
        "size": (224, 224),
        "augmentation": Augmentation(crop="resized", flip=True),
    },
    "market": {
        "files": (128, 64),
        "images": 12936,
        "classes": 751,
        "batch": (18, 4),
        "size": (256, 128),
        "augmentation": Augmentation(crop="random", enlarge=1.125, flip=True, erase_probability=0.5),
    },
}


def write_files(folder: Path, size: tuple[int, int], count: int) -> list[str]:
    """JPEG files of about the detail of photographs (some 75 kB at 500x375)."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    names = []
    for number in range(count):
        coarse = rng.normal(128, 55, (size[0] // 12 + 2, size[1] // 12 + 2, 3))
        image = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC) + rng.normal(
            0, 7, (*size, 3)
        )
        names.append(f"{number:05d}.jpg")
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
        cv2.imwrite(str(folder / names[-1]), image.clip(0, 255).astype(np.uint8), quality)
    return names


def source_of(folder: Path, names: list[str], images: int, classes: int) -> FileSource:
    """A source of the size of the real set; its files repeat, its indices do not."""
    paths = [names[i % len(names)] for i in range(images)]
    return FileSource(folder.name, folder, paths, [i % classes for i in range(images)])


def bare_batches(source: FileSource, batch: int, cores: int) -> Iterator[Any]:
    """Reading and decoding, and nothing else."""
    paths = [source.describe(i) for i in range(len(source))]
    dataset = tf.data.Dataset.from_tensor_slices(paths).repeat()
    dataset = dataset.map(
        lambda path: tf.io.decode_jpeg(tf.io.read_file(path), channels=3), num_parallel_calls=cores
    )
    return iter(dataset.batch(batch).prefetch(2))


def rate(batches: Iterator[Any], count: int, batch: int) -> tuple[float, float]:
    """Images per second of clock time and per second of processor time, over `count` batches."""
    # First fill what is made ahead of time, so that as much is made as is taken.
    for _ in range(6):
        next(batches)
    start, processor = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches)
    images = count * batch
    return images / (time.perf_counter() - start), images / (time.process_time() - processor)


def throughput(source: FileSource, setting: dict[str, Any], turns: int, count: int) -> dict[str, Any]:
    """The pipeline against bare decoding, in turns of `count` batches; only one of them lives at a time.

    Returns:
      "decoding" (every image anew each time) and, where the default cache holds the whole set, "kept" (as it is after
      the first epochs), each with the figures of both and their ratios.
    """
    p, k = setting["batch"]
    plan = PKPlan(source.labels, classes_per_batch=p, images_per_class=k, seed=0)

    def batches(cache_bytes: int, start: int = 0) -> Iterator[Any]:
        reading = Reading(setting["size"], cache_bytes=cache_bytes)
        return train_batches(
            source, plan, reading, augmentation=setting["augmentation"], seed=0, start_step=start
        )

    sizes = {"decoding": 0}
    if DecodedImages(source).cached:
        sizes["kept"] = CACHE_BYTES
        for _ in itertools.islice(batches(CACHE_BYTES), 3 * len(source) // (p * k)):
            pass
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ("bare", *sizes)}
    for turn in range(turns):
        taken["bare"].append(rate(bare_batches(source, p * k, environment.usable_cores()), count, p * k))
        for name, size in sizes.items():
            taken[name].append(rate(batches(size, 1000 * turn), count, p * k))
    figures: dict[str, Any] = {}
    for name in sizes:
        figures[name] = {}
        for place, unit in enumerate(("second", "processor second")):
            ours, bare = ([pair[place] for pair in taken[who]] for who in (name, "bare"))
            ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
            figures[name] |= {
                f"images per {unit}": round(statistics.median(ours)),
                f"bare decoding, images per {unit}": round(statistics.median(bare)),
                f"ratio per {unit}": round(ratio, 2),
            }
    return figures


def profile(source: FileSource, setting: dict[str, Any], count: int) -> dict[str, float]:
    """Microseconds of processor time per image of each stage, on one thread."""
    augmentation, size = setting["augmentation"], setting["size"]
    draws = uniforms(0, 0, np.arange(count), DRAWS)
    data = [source.read(i) for i in range(count)]
    shapes = [image_shape(d) for d in data]
    windows = [Window(*augmentation.part(*s, size, u)) for s, u in zip(shapes, draws, strict=True)]
    ratios = [reduction(w[2:], size) for w in windows]
    parts = [cut(decode_whole(d, r), w, r) for d, w, r in zip(data, windows, ratios, strict=True)]
    out = np.empty((*size, 3), np.uint8)
    p, k = setting["batch"]
    plan = PKPlan(source.labels, classes_per_batch=p, images_per_class=k, seed=0)
    stages: dict[str, Callable[[int], Any]] = {
        "plan": lambda i: plan.batch(i) if i % (p * k) == 0 else None,
        "draws": lambda i: uniforms(0, i, np.arange(p * k), DRAWS) if i % (p * k) == 0 else None,
        "read": source.read,
        "header_and_window": lambda i: augmentation.part(*image_shape(data[i]), size, draws[i]),
        "decode": lambda i: decode_whole(data[i], ratios[i]),
        "resize_and_augment": lambda i: augmentation.finish(parts[i], out, draws[i]),
        "bare_decode": lambda i: tf.raw_ops.DecodeJpeg(contents=data[i], channels=3),
    }
    times = {}
    for name, stage in stages.items():
        stage(0)
        start = time.thread_time()
        for i in range(count):
            stage(i)
        times[name] = round((time.thread_time() - start) / count * 1e6, 1)
    return times


def scale(folder: Path, names: list[str], images: int, classes: int) -> dict[str, float]:
    """Time to build the source and to the first batch, early and late in a run, and memory."""
    start = time.perf_counter()
    source = source_of(folder, names, images, classes)
    plan = PKPlan(source.labels, classes_per_batch=56, images_per_class=2, seed=0)
    built = time.perf_counter() - start
    figures = {"build_seconds": round(built, 2)}
    for step in (0, 1_000_000):
        start = time.perf_counter()
        batches = train_batches(
            source,
            plan,
            Reading((224, 224)),
            augmentation=Augmentation(crop="resized", flip=True),
            seed=0,
            start_step=step,
        )
        next(batches)
        figures[f"first_batch_seconds_at_step_{step}"] = round(time.perf_counter() - start, 2)
        for _ in itertools.islice(batches, 10):
            pass
        start = time.thread_time()
        for number in range(step, step + 200):
            plan.batch(number)
        figures[f"plan_milliseconds_at_step_{step}"] = round((time.thread_time() - start) / 200 * 1e3, 2)
    figures["peak_memory_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return figures


def to_tables(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    text = f"`{results['command']}`\n\n{_machine(results['environment'])}\n\n"
    rates = {f"{n}, {kind}": row for n in SETTINGS for kind, row in results[n]["throughput"].items()}
    text += f"Whole pipeline and bare decoding:\n\n{to_markdown(rates)}\n"
    stages = {name: results[name]["microseconds_per_image"] for name in SETTINGS}
    text += f"Microseconds of processor time per image, by stage:\n\n{to_markdown(stages)}\n"
    text += f"Scale:\n\n{to_markdown({name: results[name] for name in ('sop', 'million')})}"
    if "packed" in results:
        figures = results["packed"]
        rows = {name: row for name, row in figures.items() if isinstance(row, dict) and name != "environment"}
        told = f"{figures['images']:,} images of 96 x 96 (`{figures['command']}`)"
        text += f"\nPacked, {told}:\n\n{_machine(figures['environment'])}\n\n{to_markdown(rows)}"
    return text


def _machine(facts: dict[str, Any]) -> str:
    software = f"Python {facts['python']}, {environment.versions(facts)}"
    return f"{facts['cpu']}, {facts['cpus']} cores; {software}."


def _loose_files(temporary: Path, files: int, turns: int, count: int, shrink: int) -> dict[str, Any]:
    """All but the packed part."""
    results: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        folder = temporary / name
        names = write_files(folder, setting["files"], files)
        source = source_of(folder, names, max(setting["images"] // shrink, 800), setting["classes"])
        results[name] = {
            "throughput": throughput(source, setting, turns, count),
            "microseconds_per_image": profile(source, setting, len(names)),
        }
        print(name, json.dumps(results[name]))
    folder = temporary / "cub"
    for name, images, classes in (("sop", 59_551, 11_318), ("million", 1_000_000, 100_000)):
        paths = sorted(p.name for p in folder.iterdir())
        results[name] = scale(folder, paths, images // shrink, classes // shrink)
        print(name, json.dumps(results[name]))
    return results


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, for tests")
    results_file = Path(__file__).parent / "results" / "benchmark_input.json"
    parser.add_argument(
        "--only", choices=["packed"], help="measure this part alone, and keep the others' figures"
    )
    parser.add_argument("--output", default=str(results_file), help="JSON file; tables go beside it")
    args = parser.parse_args()
    files, turns, count, shrink = (16, 1, 1, 50) if args.tiny else (512, 5, 20, 1)
    command = " ".join(["python experiments/benchmark_input.py", *sys.argv[1:]])
    output = Path(args.output)
    with tempfile.TemporaryDirectory() as temporary:
        if args.only == "packed":
            results = json.loads(output.read_text())
        else:
            results = {"command": command, "environment": environment.describe()}
            results |= _loose_files(Path(temporary), files, turns, count, shrink)
        images = 2_000 if args.tiny else 1_000_000
        figures = packed.measure(Path(temporary), images, turns, 10 * count)
        about = {"command": command, "environment": environment.describe(), "images": images}
        results["packed"] = about | figures
        print("packed", json.dumps(results["packed"]))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n")
    output.with_suffix(".md").write_text(to_tables(results))


if __name__ == "__main__":
    main()
