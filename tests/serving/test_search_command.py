"""`python -m hap2s_jax.search`: ranks, thresholds and "no match"."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import hap2s_jax
from hap2s_jax import embed, evaluate, extras, search
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation.thresholds import ErrorRates, error_rates
from hap2s_jax.run.evaluator import Evaluator
from hap2s_jax.serving import calibration, vectors
from hap2s_jax.serving.index import FaissIndex, open_index


@pytest.fixture(scope="module")
def encoder(run):
    return hap2s_jax.load(run.workdir)


@pytest.fixture(scope="module")
def gallery(encoder, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("gallery") / "gallery.npz"
    embed.embed_images(encoder, folder[0], path, show_progress=False)
    return path


@pytest.fixture(scope="module")
def calibrated(run, tmp_path_factory):
    """A copy of the working directory, calibrated by the command."""
    workdir = shutil.copytree(run.workdir, tmp_path_factory.mktemp("calibrated") / "run")
    assert search.main([f"--workdir={workdir}", "--calibrate"]) == 0
    return workdir


def _asked(gallery, tmp_path, *arguments):
    assert (
        search.main([f"--gallery={gallery}", f"--json={tmp_path / 'out.json'}", "--overwrite", *arguments])
        == 0
    )
    return json.loads((tmp_path / "out.json").read_text())


def test_every_gallery_image_finds_itself_first_and_the_rest_by_distance(
    gallery, folder, reference, tmp_path, capsys
):
    queries = [str(path) for path in folder[1][:4]]
    answers = _asked(gallery, tmp_path, "--query", *queries, "--k=45", f"--picture={tmp_path / 'p.png'}")
    table = np.linalg.norm(reference[:4, None].astype(np.float64) - reference[None], axis=2)
    by_path = {path.relative_to(folder[0]).as_posix(): n for n, path in enumerate(folder[1])}
    for n, answer in enumerate(answers):
        assert answer["query"] == queries[n]
        assert answer["hits"][0]["path"] == folder[1][n].relative_to(folder[0]).as_posix()
        distances = [hit["distance"] for hit in answer["hits"]]
        assert distances == sorted(distances)
        np.testing.assert_allclose(
            distances, [table[n, by_path[h["path"]]] for h in answer["hits"]], atol=2e-5
        )
        assert [hit["rank"] for hit in answer["hits"]] == list(range(1, 46))
        assert answer["match"] is None  # nobody can say so without a threshold
    printed = capsys.readouterr().out
    assert f"{queries[0]}: nearest, {folder[1][0].parent.name}" in printed
    assert "these weights are not calibrated" in printed
    assert Image.open(tmp_path / "p.png").size[0] > 1000


def test_the_calibration_is_what_a_loop_over_the_validation_classes_gives(run, calibrated, encoder):
    rates = calibration.read(calibrated, encoder.fingerprint)
    source = run.job.dataset.validation
    embeddings = encoder([source.read(n) for n in range(len(source))]).astype(np.float64)
    threshold = rates.equal()
    accepted, rejected = [], []
    for n in range(len(source)):
        far = np.linalg.norm(embeddings - embeddings[n], axis=1)
        same = source.labels == source.labels[n]
        accepted.append((far[~same] <= threshold).any())
        others = same & (source.cameras != source.cameras[n])
        if others.any():
            rejected.append(not (far[others] <= threshold).any())
    assert rates.at(threshold) == pytest.approx((np.mean(accepted), np.mean(rejected)), abs=0.02)
    assert (calibrated / "thresholds.png").stat().st_size > 0
    assert calibration.read(calibrated, "other weights") is None
    (calibrated / "copy").mkdir(exist_ok=True)
    (calibrated / "copy" / "thresholds.json").write_text('{"weights": ')
    with pytest.raises(UserError, match="damaged"):
        calibration.read(calibrated / "copy", "x")


def test_no_match_beyond_the_threshold(gallery, calibrated, folder, tmp_path, capsys):
    noise = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(noise)
    arguments = [f"--workdir={calibrated}", "--query", str(folder[1][0]), str(noise)]
    for extra in ([], ["--false_accepts=0.5"], ["--threshold=1e-3"]):
        known, unknown = _asked(gallery, tmp_path, *arguments, *extra)
        assert known["match"]
        assert unknown["match"] == (unknown["hits"][0]["distance"] <= unknown["threshold"])
    assert not unknown["match"]
    printed = capsys.readouterr().out
    assert f"{noise}: no match (the nearest is at" in printed
    assert "false rejects" in printed
    assert "with 95% confidence" in printed
    assert known["threshold"] == 1e-3
    assert search.main([f"--gallery={gallery}", *arguments, "--false_accepts=0.001"]) == 1
    assert "the smallest that can be asked for" in capsys.readouterr().err


def test_calibrating_on_a_labelled_gallery(run, gallery, folder, tmp_path, capsys):
    workdir = shutil.copytree(run.workdir, tmp_path / "run")
    labelled = tmp_path / "labelled.npz"
    arguments = [f"--workdir={workdir}", f"--gallery={labelled}", "--calibrate"]
    images = vectors.read(gallery)
    for per_class, says in ((2, "with 95% confidence"), (30, "embed, then search --calibrate --gallery=")):
        labels = np.arange(len(images.labels)) // per_class
        arrays = {**vars(images), "labels": labels, "model": np.array(json.dumps(images.model))}
        del arrays["cameras"]  # it has none
        np.savez(labelled, **arrays)
        assert search.main([*arguments, "--query", str(folder[1][0])]) == 0
        printed = capsys.readouterr().out
        assert says in printed
        assert "were trained on" not in printed
        rates = ErrorRates.from_json(json.loads((workdir / "thresholds.json").read_text()))
        assert (rates.unknown_classes, rates.data) == (len(set(labels)), f"the images of {labelled}")
    assert search.main([*arguments, "--with_test_classes"]) == 1
    assert "without --gallery" in capsys.readouterr().err


def test_images_of_the_query_s_own_camera_do_not_calibrate(run, gallery, tmp_path):
    workdir = shutil.copytree(run.workdir, tmp_path / "run")
    labelled, images = tmp_path / "labelled.npz", vectors.read(gallery)
    labels = np.arange(45) // 3  # two images by camera 0, one by 1
    arrays = {**vars(images), "labels": labels, "model": np.array(json.dumps(images.model))}
    np.savez(labelled, **{**arrays, "cameras": np.arange(45) % 3 // 2})
    assert search.main([f"--workdir={workdir}", f"--gallery={labelled}", "--calibrate"]) == 0
    found = ErrorRates.from_json(json.loads((workdir / "thresholds.json").read_text()))
    expected = error_rates(images.embeddings, labels, np.arange(45) % 3 // 2)
    assert found.to_json() == {**expected.to_json(), "data": found.data}
    assert found.to_json() != {**error_rates(images.embeddings, labels).to_json(), "data": found.data}


def test_images_that_were_trained_on_are_told(run, encoder, tmp_path, capsys):
    train = run.job.dataset.train
    chosen = np.concatenate([np.flatnonzero(train.labels == c)[:2] for c in range(25)])
    for n, index in enumerate(chosen):
        path = tmp_path / "images" / str(train.labels[index]) / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(train.read(index) if n < 20 else run.source.read(n % 40))
    labelled = tmp_path / "labelled.npz"
    embed.embed_images(encoder, tmp_path / "images", labelled, show_progress=False)
    workdir = shutil.copytree(run.workdir, tmp_path / "run")
    assert search.main([f"--workdir={workdir}", f"--gallery={labelled}", "--calibrate"]) == 0
    assert "warning: 20 of 50 images were trained on" in capsys.readouterr().out
    assert evaluate.main([f"--embeddings={labelled}", "--cluster=false"]) == 0
    assert f"warning: 20 of 50 images are training images of {run.workdir}" in capsys.readouterr().out


def test_calibrating_on_the_test_classes_too_is_said_in_the_card(run, tmp_path, capsys, monkeypatch):
    data = run.job.dataset
    workdir = shutil.copytree(run.workdir, tmp_path / "run")
    (workdir / "model_card.md").write_text("# card\n\n## Data\n\nsome\n")
    monkeypatch.setattr(
        Evaluator,
        "embed_source",
        lambda self, variables, source: (_far_apart(source), np.ones(len(source), bool)),
    )
    for _ in range(2):  # the second time the note is there already
        assert search.main([f"--workdir={workdir}", "--calibrate", "--with_test_classes"]) == 0
    assert "the test figures are no longer held out" in capsys.readouterr().out
    card = (workdir / "model_card.md").read_text()
    assert card.count("The threshold was calibrated on the test classes too") == 1
    rates = ErrorRates.from_json(json.loads((workdir / "thresholds.json").read_text()))
    classes = sum(len(np.unique(source.labels)) for source in (data.validation, data.test))
    assert rates.unknown_classes == classes
    assert rates.data.startswith("validation and test classes")


def _far_apart(source):
    return np.stack([np.cos(source.labels), np.sin(source.labels)], axis=1).astype(np.float32)


def test_a_search_goes_on_after_a_query_that_cannot_be_read(gallery, folder, tmp_path, capsys):
    (tmp_path / "torn.png").write_bytes(folder[1][0].read_bytes()[:60])
    queries = [str(folder[1][0]), str(tmp_path / "torn.png"), str(folder[1][1])]
    arguments = [f"--json={tmp_path / 'out.json'}", f"--picture={tmp_path / 'found.png'}"]
    assert search.main([f"--gallery={gallery}", "--k=1", *arguments, "--query", *queries]) == 1
    first, torn, last = json.loads((tmp_path / "out.json").read_text())
    assert first.keys() == last.keys() > {"match", "hits"}
    assert torn.keys() == {"query", "error"}
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: 1 of 3 queries cannot be read, such as {queries[1]}: the image is")
    assert printed.err.count("\n") == 1
    assert f"{queries[1]}: cannot be read" in printed.out
    assert (tmp_path / "found.png").stat().st_size > 0


def test_parquet_a_folder_of_queries_and_images_that_moved(encoder, folder, tmp_path, capsys):
    pytest.importorskip("pyarrow")
    root = shutil.copytree(folder[0], tmp_path / "here")
    embed.embed_images(encoder, root, tmp_path / "g.parquet", show_progress=False)
    some = sorted(path for path in root.iterdir() if path.is_dir())[0]
    shutil.copytree(some, tmp_path / "asked")
    root.rename(tmp_path / "there")
    arguments = ["--query", str(tmp_path / "asked"), "--k=2", "--threshold=none"]
    answers = _asked(tmp_path / "g.parquet", tmp_path, *arguments, f"--picture={tmp_path / 'grey.png'}")
    assert len(answers) == len(list((tmp_path / "asked").iterdir()))
    arguments += [f"--images={tmp_path / 'there'}", f"--picture={tmp_path / 'found.png'}"]
    _asked(tmp_path / "g.parquet", tmp_path, *arguments)
    grey, found = (np.asarray(Image.open(tmp_path / f"{n}.png").convert("RGB")) for n in ("grey", "found"))
    assert not np.array_equal(grey, found)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_faiss_finds_what_exact_search_finds(tmp_path, distance):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(50, 16))
    rows = (centres[rng.integers(0, 50, 5000)] + 0.3 * rng.normal(size=(5000, 16))).astype(np.float32)
    queries = rows[::100] + 0.01
    cache = tmp_path / "g.faiss"
    exact = open_index(rows, distance, kind="exact").search(queries, 10)
    for _ in range(2):  # the second time from the file
        index = open_index(rows, distance, kind="faiss", cache=cache)
        assert isinstance(index, FaissIndex)
        distances, found = index.search(queries, 10)
        shared = [len(set(a) & set(b)) for a, b in zip(found.tolist(), exact[1].tolist(), strict=True)]
        assert np.mean(shared) > 9.5
        same = found == exact[1]
        np.testing.assert_allclose(distances[same], exact[0][same], rtol=1e-6)
        even = np.arange(5000) % 2 == 0
        some = index.search(queries, 10, even)[1].tolist()
        right = open_index(rows, distance, kind="exact").search(queries, 10, even)[1].tolist()
        assert np.mean([len(set(a) & set(b)) for a, b in zip(some, right, strict=True)]) > 9
        before = cache.stat().st_mtime_ns
    assert cache.stat().st_mtime_ns == before
    cache.write_bytes(b"damaged")
    assert len(open_index(rows, distance, kind="faiss", cache=cache).search(queries[:1], 3)[1][0]) == 3
    swapped = rows[[1, 0, *range(2, len(rows))]]
    again = open_index(swapped, distance, kind="faiss", cache=cache)
    assert again.search(swapped[:1], 1)[1].tolist() == [[0]], "the index in the file was of other rows"
    nowhere = tmp_path / "a file"
    nowhere.touch()
    assert open_index(rows, distance, kind="faiss", cache=nowhere / "g").search(rows[:1], 1)[1].tolist() == [
        [0]
    ]


def test_the_picture_shows_what_every_query_found(gallery, encoder, folder, tmp_path):
    searcher = search.Searcher(encoder, vectors.read(gallery))
    queries = [str(path) for path in folder[1][:2]]
    full, other = searcher.search(queries, 3)
    search._draw(searcher, queries, [full, search.Answer(other.hits[:1], None)], str(tmp_path / "x.png"))
    assert (tmp_path / "x.png").stat().st_size > 0
    with pytest.raises(UserError, match="found nothing to draw"):
        search._draw(searcher, queries, [full, search.Answer([], None)], str(tmp_path / "y.png"))


def test_calibrating_needs_the_training_extra(run, monkeypatch, capsys):
    monkeypatch.setitem(extras.MODULES, "train", ("no_such_module",))
    assert search.main([f"--workdir={run.workdir}", "--calibrate"]) == 1
    assert 'pip install "hap2s_jax[train]"' in capsys.readouterr().err


def test_without_faiss(monkeypatch):
    monkeypatch.setattr("hap2s_jax.serving.index._has_faiss", lambda: False)
    rows = np.eye(4, dtype=np.float32)
    assert open_index(rows, "cosine").search(rows[:1], 1)[1].tolist() == [[0]]
    with pytest.raises(UserError, match=r'pip install "hap2s_jax\[faiss\]"'):
        open_index(rows, "cosine", kind="faiss")


def test_mistakes_are_one_line(run, gallery, folder, tmp_path, capsys):
    query = str(folder[1][0])
    other = vectors.read(gallery)
    moved = tmp_path / "moved.npz"
    model = {**other.model, "workdir": str(tmp_path / "gone")}
    arrays = {name: value for name, value in vars(other).items() if value is not None}
    np.savez(moved, **{**arrays, "model": np.array(json.dumps(model))})
    cases = [
        ([], "give --gallery"),
        (["--calibrate"], "needs --workdir"),
        ([f"--gallery={tmp_path / 'none.npz'}", f"--query={query}"], "there is no file"),
        ([f"--gallery={moved}", f"--query={query}"], "which does not exist; give --workdir"),
        ([f"--gallery={gallery}", f"--query={query}", "--checkpoint=6"], "embedded with other weights"),
        ([f"--gallery={gallery}", "--query=nothing.png"], "nothing.png cannot be read"),
        (
            [f"--gallery={gallery}", f"--query={query}", "--threshold=low"],
            "it should be auto, none or a distance",
        ),
        (
            [f"--gallery={gallery}", f"--query={query}", "--threshold=nan"],
            "it should be auto, none or a distance",
        ),
        ([f"--gallery={gallery}", f"--query={query}", "--false_accepts=0.1"], "--calibrate --workdir="),
        (
            [f"--gallery={gallery}", f"--query={query}", "--false_accepts=0.1", "--threshold=1"],
            "leave it out beside --threshold=1",
        ),
        ([f"--gallery={gallery}", f"--query={query}", "--k=0"], "--k is 0; it should be at least 1"),
    ]
    for arguments, says in cases:
        assert search.main(arguments) == 1
        printed = capsys.readouterr().err
        assert printed.startswith("error: ")
        assert says in printed
        assert printed.count("\n") == 1
