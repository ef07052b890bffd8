"""The cross-set study: photographs are found under the names that the splits give them, and every config loads."""

import argparse
import csv
import pathlib
import sys

from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "experiments"), str(ROOT)]

import cross_sets  # noqa: E402 - a script, which lies on no path but its own

from hap2s_jax.run import sets  # noqa: E402

METADATA = "wildlife-tools/baselines/data/metadata/datasets"


def test_photographs_are_copied_with_their_split_and_every_variant_loads(tmp_path):
    for name, of in cross_sets.METADATA.items():
        rows = [("", "image_id", "identity", "path", "split")]
        for n in range(8):
            image = tmp_path / "wildlife_reidentification" / name / f"{n}_left.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (120, 200), (30 * n, 0, 0)).save(image)
            path = f"wildlife_reidentification-main/{name}/{n}_left_{n:016x}.jpg"
            rows.append((n, f"{n:016x}", f"animal {n // 4}", path, "test" if n % 4 == 3 else "train"))
        file = tmp_path / METADATA / of / "metadata.csv"
        file.parent.mkdir(parents=True)
        with file.open("w", newline="") as opened:
            csv.writer(opened).writerows(rows)
    cross_sets.copy_animals(tmp_path, tmp_path / "data" / "animals")
    found = cross_sets.places(tmp_path / "data")
    assert list(found) == ["emoji", "nyala", "lion"]
    options = argparse.Namespace(steps=12, width=8)
    for title, (names, batch) in cross_sets.variants(found).items():
        config = cross_sets.config_of(found, names, batch, options, seed=0)
        data = sets.load_dataset(config)
        assert data.name.split("+") == sorted(names), title
        protocols = {target.name: target.protocols for target in data.targets}
        assert protocols["nyala"] == protocols["lion"] == ("closed_set",)
        assert len(data.targets[-1].query) == 2
    with Image.open(tmp_path / "data" / "animals" / "nyala" / "3_left.png") as copy:
        assert copy.size == (96, 160)
