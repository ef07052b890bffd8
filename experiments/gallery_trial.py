"""A gallery as a new user has it, with drawings that the encoder has never seen: the held-out half of emoji.

    python -m hap2s_jax.main --config=configs/emoji.py --workdir=runs/emoji
    python experiments/gallery_trial.py --workdir=runs/emoji --output=trial

300 drawings are enrolled with their names, 200 come without: half of known individuals, half of new ones. They are
reviewed through the API of the page, by a script that knows the truth and takes a candidate where one is right. Then:
export, training on it, move.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import time
from typing import Any

import numpy as np

from hap2s_jax import gallery
from hap2s_jax import main as training
from hap2s_jax.catalogue import review, reviewed
from hap2s_jax.catalogue.searching import Finder
from hap2s_jax.catalogue.store import Store
from hap2s_jax.data import emoji

KNOWN, ENROLLED, ASKED_AGAIN, NEW, OF_NEW = 100, 3, 1, 50, 2


def _draw(folder: pathlib.Path) -> dict[str, str]:
    """Writes the drawings and two CSVs; the true individual by file name."""
    source, rng = emoji.load().test, np.random.default_rng(0)
    assert source is not None
    assert source.cameras is not None
    by_class: dict[int, list[int]] = {}
    for n in rng.permutation(len(source)).tolist():
        by_class.setdefault(int(source.labels[n]), []).append(n)
    classes = [c for c, rows in by_class.items() if len(rows) >= ENROLLED + ASKED_AGAIN][: KNOWN + NEW]
    truth, enrolled, asked = {}, ["path,label,camera"], []
    for place, number in enumerate(classes):
        counts = (ENROLLED, ASKED_AGAIN) if place < KNOWN else (0, OF_NEW)
        for turn, row in enumerate(by_class[number][: sum(counts)]):
            name = f"{number:04d}-{turn}.png"
            (folder / name).write_bytes(source.read(row))
            truth[name] = f"emoji {number:04d}"
            camera = source.cameras[row]
            if turn < counts[0]:
                enrolled.append(f"{name},{truth[name]},{camera}")
            else:
                asked.append(f"{name},{camera}")
    (folder / "enrolled.csv").write_text("\n".join(enrolled))
    (folder / "asked.csv").write_text("\n".join(["path,camera", *rng.permutation(asked)]))
    return truth


def _review(store: Store, truth: dict[str, str]) -> dict[str, int]:
    """Works through the queue by the page's API; how often which decision was taken."""
    import gradio_client

    threshold, words = reviewed.choose_threshold(store)
    page = review.build(review.Review(Finder(store), threshold), words)
    _, address, _ = review.launch(page, block=False)
    client = gradio_client.Client(address, verbose=False, download_files=False)
    names: dict[str, str] = {name: name for name in store.individuals()}
    taken: dict[str, int] = {}
    shown: Any = client.predict("script", api_name="/show")
    while captions := re.findall(r"<figcaption>(.*?)</figcaption>", shown[0]):
        right = truth[captions[0].split(" · ")[0]]
        candidates = [re.sub(r"^\d+: (.*) · [\d.]+( ✗)?$", r"\1", caption) for caption in captions[1:]]
        if names.get(right) in candidates:
            place = candidates.index(names[right]) + 1
            shown, kind = client.predict("script", api_name=f"/same_{place}"), f"candidate {place}"
        elif right in names:
            shown, kind = client.predict("script", names[right], api_name="/another"), "another, by name"
        else:
            shown, kind = client.predict("script", api_name="/new"), "new individual"
            store.refresh()
            names[right] = store.history(1)[0].label
        assert shown[2] == "", shown[2]
        taken[kind] = taken.get(kind, 0) + 1
    page.close()
    return taken


def main() -> None:
    """Prints what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, help="a run of configs/emoji.py")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="a folder to be made")
    parser.add_argument("--config", default="configs/folder.py:scratch", help="to train with")
    parser.add_argument("more", nargs="*", help="further flags of the training, after --")
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    truth, where = _draw(options.output), str(options.output / "store")

    def done(*arguments: str) -> None:
        start = time.perf_counter()
        assert gallery.main([*arguments]) == 0, arguments
        print(f"    ({arguments[0]}: {time.perf_counter() - start:.1f} s)", flush=True)

    done("create", where, f"--workdir={options.workdir}")
    for name in ("enrolled", "asked"):
        done("add", where, f"--images={options.output / name}.csv")
    start = time.perf_counter()
    taken = _review(Store(where), truth)
    print(f"reviewed in {time.perf_counter() - start:.0f} s: {dict(sorted(taken.items()))}", flush=True)
    done("threshold", where)
    trained, run = options.output / "trained.csv", options.output / "run"
    done("export", where, f"--output={trained}", "--train")
    arguments = [f"--config={options.config}", f"--config.data.data_dir={trained}", f"--workdir={run}"]
    assert training.main([*arguments, *options.more]) == 0
    done("re_embed", where, f"--workdir={run}")
    store, files = Store(where), Store(where).texts("path")
    wrong = sum(
        len({truth[files[row]] for row in np.flatnonzero(store.labels == n)}) > 1
        for n in range(1, len(store.names))
    )
    print(f"{len(store.individuals())} individuals, of which {wrong} hold drawings of several emoji")


if __name__ == "__main__":
    main()
