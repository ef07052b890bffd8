"""`python -m hap2s_jax.evaluate` on a file of embeddings."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from hap2s_jax import evaluate as command
from hap2s_jax.evaluation import evaluate, verification
from hap2s_jax.evaluation.inputs import DISTANCES


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, 90)
    return {
        "embeddings": (rng.normal(size=(9, 4))[labels] + rng.normal(size=(90, 4))).astype(np.float32),
        "labels": labels,
        "cameras": rng.integers(0, 3, 90),
        "split": np.where(np.arange(90) < 30, "query", "gallery"),
    }


@pytest.fixture
def file(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return tmp_path / "x.npz"


def figures_of(tmp_path, *arguments):
    assert command.main([*arguments, f"--json={tmp_path / 'out.json'}", "--overwrite"]) == 0
    return json.loads((tmp_path / "out.json").read_text())


def test_figures_equal_the_library_s(file, tmp_path, arrays):
    written = figures_of(tmp_path, f"--embeddings={file}")
    expected = evaluate(
        arrays["embeddings"],
        arrays["labels"],
        arrays["cameras"],
        query=np.arange(30),
        gallery=np.arange(30, 90),
        protocols=("query_gallery",),
    )
    assert written["figures"] == pytest.approx(expected)
    assert written["settings"] == {
        "protocols": ["query_gallery"],
        "distance": "euclidean",
        "ties": "pessimistic",
    }


def test_embeddings_are_compared_as_their_encoder_was_trained_for(tmp_path, arrays):
    for model, used in (
        ('{"distance": "cosine"}', "cosine"),
        ("some net", "euclidean"),
        ('{"distance": "l2"}', "euclidean"),
    ):
        np.savez(tmp_path / "x.npz", **arrays, model=np.array(model))
        assert figures_of(tmp_path, f"--embeddings={tmp_path / 'x.npz'}")["settings"]["distance"] == used
    assert (
        figures_of(tmp_path, f"--embeddings={tmp_path / 'x.npz'}", "--distance=cosine")["settings"][
            "distance"
        ]
        == "cosine"
    )


def test_a_model_of_somebody_else_s_is_never_unpickled(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **arrays, model=np.array({"distance": "cosine"}))
    written = figures_of(tmp_path, f"--embeddings={tmp_path / 'x.npz'}", "--no_cluster")
    assert written["settings"]["distance"] == "euclidean"


def test_without_cameras_and_split_it_is_class_retrieval(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", embeddings=arrays["embeddings"], labels=arrays["labels"])
    written = figures_of(tmp_path, f"--embeddings={tmp_path / 'x.npz'}", "--no_cluster", "--recall_at=1,3")
    assert {"recall@1", "recall@3", "map@r"} < set(written["figures"])
    assert "nmi" not in written["figures"]


def test_reranking_intervals_tables_and_queries(file, tmp_path, capsys):
    written = figures_of(
        tmp_path,
        f"--embeddings={file}",
        "--distance=cosine",
        "--rerank",
        "--k1=8",
        "--k2=3",
        "--confidence=0.9",
        "--resample=class",
        "--by=camera",
        f"--per_query={tmp_path / 'queries.csv'}",
    )
    figure = written["query_gallery, re-ranked"]["mAP"]
    assert written["query_gallery, re-ranked, 90% low"]["mAP"] < figure
    assert figure < written["query_gallery, re-ranked, 90% high"]["mAP"]
    tables = [written[f"query_gallery, re-ranked, camera {c}"] for c in range(3)]
    assert sum(table["queries"] for table in tables) == 30
    with (tmp_path / "queries.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 30
    counted = [float(row["mAP"]) for row in rows if row["matches"] != "0"]
    assert np.mean(counted) == pytest.approx(figure)
    assert "re-ranked" in capsys.readouterr().out


def test_expansion_changes_what_is_evaluated(file, tmp_path):
    plain = figures_of(tmp_path, f"--embeddings={file}", "--distance=cosine")
    more = figures_of(tmp_path, f"--embeddings={file}", "--expand=5", "--alpha=1")
    assert more["settings"]["distance"] == "cosine"
    assert more["figures"]["mAP"] != plain["figures"]["mAP"]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"labels": None}, [], "has no array 'labels'"),
        ({"split": np.full(90, "train")}, [], "holds 'train'; it may hold query, gallery, both, views"),
        ({"split": np.full(9, "query")}, [], "split in .* must have one entry for each embedding"),
        ({"split": np.full(90, "query")}, [], "gallery is empty"),
        ({"embeddings": np.full((90, 4), np.nan)}, [], "embeddings holds NaN or infinity in 90 of 90 rows"),
        ({"labels": np.arange(89)}, [], "labels has 89 entries for 90 embeddings"),
        ({"cameras": None}, ["--by=camera"], "--by=camera: the embeddings come without cameras"),
        ({}, ["--ranks=1,500"], "a rank k of 500 was asked for, but the gallery holds 60"),
        ({}, ["--protocols=in_shop", "--rerank"], "--rerank, .* need class or query_gallery"),
        ({}, ["--worst=x.png"], "--worst: an .npz file holds no images"),
        ({}, ["--protocols=cub"], "protocols must be a list out of"),
        ({}, ["--views=flip"], "--views needs the encoder and the images: use it with --workdir"),
    ],
)
def test_a_user_s_mistake_is_one_line(tmp_path, arrays, capsys, change, arguments, message):
    kept = {name: array for name, array in (arrays | change).items() if array is not None}
    np.savez(tmp_path / "x.npz", **kept)
    assert command.main([f"--embeddings={tmp_path / 'x.npz'}", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)


def test_the_worst_queries_are_drawn(tmp_path, arrays, monkeypatch):
    image = pytest.importorskip("PIL.Image")
    x, labels, pictures = arrays["embeddings"], arrays["labels"], np.zeros((90, 16, 16, 3), np.uint8)
    rest = {
        "cameras": None,
        "query": None,
        "gallery": None,
        "views": None,
        "protocols": ("class",),
        "distance": "cosine",
    }
    inputs = command.Inputs(x, labels, **rest, images=lambda rows: pictures[rows])
    monkeypatch.setattr(command, "from_workdir", lambda workdir, **choices: inputs)
    assert command.main(["--workdir=somewhere", "--no_cluster", f"--worst={tmp_path / 'worst.png'}"]) == 0
    assert image.open(tmp_path / "worst.png").size[0] > 100


def test_what_a_picture_needs_is_asked_for_before_the_work(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = [f"--embeddings={file}", f"--roc={tmp_path / 'roc.png'}", f"--json={tmp_path / 'out.json'}"]
    assert command.main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: --roc needs matplotlib, which is not installed: pip install")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_distance_of_the_config_can_be_chosen(file, tmp_path, distance):
    arguments = [f"--embeddings={file}", f"--distance={distance}", "--rerank", "--k1=8"]
    arguments += ["--protocols=class,verification"]
    assert figures_of(tmp_path, *arguments)["settings"]["distance"] == distance


@pytest.mark.parametrize("content", [None, b"not an archive"])
def test_a_file_that_is_missing_or_no_archive_is_one_line(tmp_path, capsys, content):
    path = tmp_path / "x.npz"
    if content is not None:
        path.write_bytes(content)
    assert command.main([f"--embeddings={path}"]) == 1
    error = capsys.readouterr().err
    assert "error: --embeddings: " in error
    assert error.count("\n") == 1


def test_the_command_loads_neither_tensorflow_nor_flax(file):
    script = (
        "import sys; from hap2s_jax import evaluate; code = evaluate.main(sys.argv[1:]);"
        "heavy = {'tensorflow', 'flax', 'optax', 'orbax', 'ml_collections', 'absl'} & set(sys.modules);"
        "sys.exit(code or (str(heavy) if heavy else 0))"
    )
    subprocess.run([sys.executable, "-c", script, f"--embeddings={file}"], check=True, capture_output=True)


def test_files_that_are_no_npz_are_one_line(tmp_path, capsys):
    np.save(tmp_path / "plain.npy", np.zeros((2, 3)))
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("plain.npy", "empty.npz"):
        assert command.main([f"--embeddings={tmp_path / name}"]) == 1
        error = capsys.readouterr().err
        assert "is not an .npz file of plain arrays, as numpy.savez writes it" in error
        assert error.count("\n") == 1


def test_pairs_of_a_file_and_their_curve(file, tmp_path, arrays, capsys):
    rng = np.random.default_rng(3)
    pairs = np.array([p for p in rng.integers(0, 90, (400, 2)) if p[0] != p[1]])
    np.savez(tmp_path / "pairs.npz", pairs=pairs)
    lines = "first,second,same\n" + "".join(
        f"{a},{b},{int(arrays['labels'][a] == arrays['labels'][b])}\n" for a, b in pairs
    )
    (tmp_path / "pairs.csv").write_text(lines)
    expected = verification(arrays["embeddings"], arrays["labels"], pairs)
    picture = tmp_path / "roc.png"
    for name in ("pairs.npz", "pairs.csv"):
        written = figures_of(
            tmp_path, f"--embeddings={file}", f"--pairs={tmp_path / name}", f"--roc={picture}"
        )
        assert written["figures"] == pytest.approx(written["figures"] | expected)
    assert picture.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "pairs.csv").write_text("0,1\n2,three\n")
    assert command.main([f"--embeddings={file}", f"--pairs={tmp_path / 'pairs.csv'}"]) == 1
    error = capsys.readouterr().err.strip()
    assert "line 2" in error
    assert "\n" not in error
