"""Files of every format there was are read, gone on with, and told from those of later versions."""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
import zipfile

import jax
import numpy as np
import pytest

import hap2s_jax
from hap2s_jax import embed, evaluate, formats, main, search
from hap2s_jax.errors import UserError
from hap2s_jax.models import pretrained
from hap2s_jax.recipes import common
from hap2s_jax.reporting.metric_log import read_metrics
from hap2s_jax.run import config as configs
from hap2s_jax.run import report
from hap2s_jax.serving import calibration, exports, vectors

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "witness"), str(HERE.parent)]

import make  # noqa: E402 - the script that made the witnesses


@pytest.fixture(scope="module", params=sorted((HERE / "witness").glob("format*.zip")), ids=lambda p: p.stem)
def witness(request, tmp_path_factory):
    """A run of that format, what was made of it, and its images."""
    folder = tmp_path_factory.mktemp(pathlib.Path(request.param).stem)
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(folder)
    make.draw(folder / "images")
    return folder


@pytest.fixture(scope="module")
def encoder(witness):
    return hap2s_jax.load(witness / "run")


def _images(witness):
    return [str(witness / "images" / name) for name in vectors.read(witness / "gallery.npz").paths]


def test_every_format_has_a_step_and_a_witness():
    assert len(formats._STEPS) == formats.FORMAT
    kept = {path.stem for path in (HERE / "witness").glob("format*.zip")}
    assert kept == {f"format{n}" for n in range(formats.FORMAT)}


def test_a_witness_is_evaluated_to_its_own_figures(witness, encoder, tmp_path):
    gallery = vectors.read(witness / "gallery.npz")
    assert gallery.model["fingerprint"] == encoder.fingerprint
    np.testing.assert_allclose(encoder(_images(witness)), gallery.embeddings, atol=1e-4)
    table = witness / "images" / "images.csv"
    arguments = [f"--workdir={witness / 'run'}", f"--data_dir={table}", f"--json={tmp_path / 'figures.json'}"]
    assert evaluate.main([*arguments, "--no_cluster"]) == 0
    found = json.loads((tmp_path / "figures.json").read_text())["figures"]
    expected = formats.read(witness / "run" / "results.json", config="config")["test"]
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-3)
    assert {"mAP", "map@r", "rank-1", "recall@1"} <= found.keys()


def test_a_witness_is_searched(witness, encoder, tmp_path, monkeypatch):
    queries = _images(witness)
    stored = formats.read(witness / "run" / "thresholds.json")
    assert stored["weights"] == encoder.fingerprint
    # Format 0 counted no classes, so that nothing can be promised by it: no threshold, and no error.
    rates = calibration.read(witness / "run", encoder.fingerprint)
    assert rates is None if "format0" in witness.name else rates.known_classes == 4
    monkeypatch.setattr(search.commands, "open_encoder", lambda *a: encoder)
    arguments = [f"--workdir={witness / 'run'}", f"--images={witness / 'images'}", f"--json={tmp_path / 'j'}"]
    for name in ("gallery.npz", "gallery.parquet"):
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow")
        more = ["--k=1", "--overwrite", "--query", *queries]
        assert search.main([*arguments, f"--gallery={witness / name}", *more]) == 0
        for query, answer in zip(queries, json.loads((tmp_path / "j").read_text()), strict=True):
            assert answer["hits"][0]["path"] == pathlib.Path(query).name
            assert answer["hits"][0]["distance"] == pytest.approx(0, abs=1e-3)


def test_what_was_exported_is_still_the_encoder(witness, encoder, tmp_path):
    exports.write_safetensors(encoder, tmp_path)
    old, new = (pretrained.read_tensors(f / "encoder.safetensors") for f in (witness / "exported", tmp_path))
    assert old.keys() == new.keys()
    for name in old:
        np.testing.assert_array_equal(old[name], new[name])
    exports.write_preprocessing(encoder, tmp_path)
    old, new = (formats.read(f / exports.PREPROCESSING) for f in (witness / "exported", tmp_path))
    for name in ("jax", "stablehlo_is_guaranteed_until", "sha256"):  # the day and the other files decide
        old.pop(name, None)
    assert old.items() <= new.items()
    pixels = np.stack([encoder.preprocess(path) for path in _images(witness)])
    made_with = formats.read(witness / "run" / "results.json")["environment"]["packages"]["jax"]
    try:
        exported = jax.export.deserialize(bytearray((witness / "exported/encoder.stablehlo").read_bytes()))
        found = exported.call(pixels)
    except Exception as error:
        if jax.__version__ == made_with:
            raise
        pytest.skip(f"JAX keeps exports readable for 180 days; this one is of {made_with}: {error}")
    np.testing.assert_allclose(found, vectors.read(witness / "gallery.npz").embeddings, atol=1e-4)


def test_a_witness_is_resumed_to_its_end(witness, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(witness / "run", run)
    # As it was when step 3 had just been saved.
    for path in [
        run / "checkpoints" / "6",
        run / "results.json",
        run / "model_card.md",
        run / "thresholds.json",
    ]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr(report, "draw", lambda *a, **k: None)
    config = configs.load(run)
    added = configs.flatten(common.get_config()).keys() ^ configs.flatten(config).keys()
    added = {key for key in added if not key.startswith(("loss.", "auxiliary.", "data.options."))}
    assert not added, "a key that came, went or was renamed needs a step in hap2s_jax.formats"
    with config.unlocked():
        config.data.data_dir = str(witness / "images" / "images.csv")
    results = main.run(config, run)
    assert "resuming at step 3 of 6" in capsys.readouterr().out

    def losses(folder):
        return [r["train/loss"] for r in read_metrics(folder) if "train/loss" in r]

    assert len(losses(run)) == 6
    # Rounding differs between versions of JAX and compilers, and Adam amplifies it.
    np.testing.assert_allclose(losses(run), losses(witness / "run"), rtol=0.01)
    expected = formats.read(witness / "run" / "results.json")["test"]
    assert results["test"]["mAP"] == pytest.approx(expected["mAP"], abs=0.05)
    assert json.loads((run / "config.json").read_text())["format"] == formats.FORMAT
    assert json.loads((run / "results.json").read_text())["format"] == formats.FORMAT


def test_a_step_gives_what_it_adds_the_value_that_was_in_effect():
    old = {"config": {"evaluate": {"flip": True}}, "steps": 3}
    assert formats.upgraded(json.loads(json.dumps(old)), "f", config="config") == {
        "format": formats.FORMAT,
        "config": {"evaluate": {"flip": True, "zooms": False}},
        "steps": 3,
    }
    kept = {"format": formats.FORMAT, "evaluate": {"flip": True}}
    assert formats.upgraded(dict(kept), "f", config="") == kept
    assert formats.upgraded({"evaluate": {"zooms": True}}, "f", config="")["evaluate"] == {"zooms": True}


@pytest.mark.parametrize("number", ["1", True, -1, 1.0, None])
def test_a_number_that_is_none_is_damage(tmp_path, number):
    (tmp_path / "config.json").write_text(json.dumps({"format": number}))
    with pytest.raises(UserError, match=r"config\.json cannot be read: format is .*whole number"):
        configs.load(tmp_path)


@pytest.fixture(scope="module")
def later(witness, tmp_path_factory):
    """Files with the next number."""
    folder = tmp_path_factory.mktemp("later")
    for name in ("config.json", "results.json", "thresholds.json"):
        record = json.loads((witness / "run" / name).read_text())
        (folder / name).write_text(json.dumps(record | {"format": formats.FORMAT + 1}))
    with np.load(witness / "gallery.npz") as file:
        arrays = dict(file)
    model = json.loads(str(arrays["model"])) | {"format": formats.FORMAT + 1}
    np.savez(folder / "gallery.npz", **arrays | {"model": json.dumps(model)})
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(witness / "gallery.parquet")
    parquet.write_table(
        table.replace_schema_metadata({"hap2s_jax": json.dumps(model)}), folder / "gallery.parquet"
    )
    return folder


def _embed_again(witness, output):
    encoder = hap2s_jax.load(witness / "run")
    embed.embed_images(encoder, witness / "images", output, show_progress=False)


READERS = {
    "config.json": (lambda _, path: configs.load(path.parent),),
    "results.json": (
        lambda _, path: report.is_finished(path.parent, 6),
        lambda _, path: report.already_finished(path.parent, 6, is_lead=True),
    ),
    "thresholds.json": (lambda _, path: calibration.read(path.parent, "weights"),),
    "gallery.npz": (
        lambda _, path: vectors.read(path),
        lambda _, path: evaluate.from_npz(str(path)),
        _embed_again,
    ),
    "gallery.parquet": (lambda _, path: vectors.read(path), _embed_again),
}


@pytest.mark.parametrize(("name", "reader"), [(name, r) for name, all_ in READERS.items() for r in all_])
def test_what_a_later_version_wrote_is_one_line(witness, later, name, reader):
    with pytest.raises(UserError) as caught:
        reader(witness, later / name)
    number = formats.FORMAT + 1
    assert str(caught.value).startswith(
        f"{later / name} has format {number}, and this version of hap2s_jax reads"
    )
    assert "\n" not in str(caught.value)


def test_an_archive_of_somebody_elses_has_no_format(tmp_path):
    labels = np.arange(4) // 2
    for model in ({"format": 99}, {"format": "theirs", "distance": "cosine"}, [], "fingerprint", 3):
        path = tmp_path / "theirs.npz"
        np.savez(path, embeddings=np.eye(4, dtype=np.float32), labels=labels, model=json.dumps(model))
        assert evaluate.from_npz(str(path)).distance == (
            "cosine" if isinstance(model, dict) and "distance" in model else "euclidean"
        )
