"""Against the rank and re-ranking files of torchreid and fastreid, loaded as black boxes.

They are not on PyPI. Set HAP2S_REFERENCE_CODE to a folder that holds checkouts named `deep-person-reid` and
`fast-reid` to run these tests.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import types
import warnings

import numpy as np
import pytest

from hap2s_jax.evaluation import evaluate, protocols, retrieval, special
from hap2s_jax.evaluation.expansion import expand
from hap2s_jax.evaluation.reranking import KReciprocal

FOLDER = os.environ.get("HAP2S_REFERENCE_CODE")
pytestmark = pytest.mark.skipif(not FOLDER, reason="HAP2S_REFERENCE_CODE is not set")

RANK_FILES = {"torchreid": "metrics/rank.py", "fastreid": "evaluation/rank.py"}
RERANK_FILES = {"torchreid": "utils/rerank.py", "fastreid": "evaluation/rerank.py"}
ROOTS = {"torchreid": "deep-person-reid/torchreid", "fastreid": "fast-reid/fastreid"}


def load(name: str, file: str) -> types.ModuleType:
    path = pathlib.Path(str(FOLDER)) / ROOTS[name] / file
    spec = importlib.util.spec_from_file_location(path.stem + "_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn that their compiled half is missing
        spec.loader.exec_module(module)
    return module


def case(seed, *, integers=False, queries=40, n=140):
    rng = np.random.default_rng(seed)
    labels, cameras = rng.integers(0, 15, n), rng.integers(0, 4, n)
    x = rng.normal(size=(15, 5))[labels] + rng.normal(size=(n, 5))
    x = np.round(x) if integers else x
    distances = ((x[:, None] - x[None]) ** 2).sum(axis=-1)
    return x.astype(np.float32), labels, cameras, np.arange(queries), np.arange(queries, n), distances


@pytest.mark.parametrize("name", RANK_FILES)
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_cmc_map_and_minp(name, seed, integers):
    x, labels, cameras, query, gallery, distances = case(seed, integers=integers)
    table = distances[np.ix_(query, gallery)]
    if integers:
        # They break ties by an unstable sort; ours go against the encoder, so the table is nudged to say so.
        table = table + 1e-6 * (labels[query][:, None] == labels[gallery])
    theirs = load(name, RANK_FILES[name]).evaluate_rank(
        table, labels[query], labels[gallery], cameras[query], cameras[gallery], max_rank=50, use_cython=False
    )
    ours = evaluate(
        x, labels, cameras, query=query, gallery=gallery, protocols=("query_gallery",), ranks=(1, 5, 50)
    )
    np.testing.assert_allclose(
        [ours["rank-1"], ours["rank-5"], ours["rank-50"]], theirs[0][[0, 4, 49]], atol=1e-6
    )
    assert ours["mAP"] == pytest.approx(np.mean(theirs[1]), abs=1e-6)
    if name == "fastreid":
        assert ours["mINP"] == pytest.approx(np.mean(theirs[2]), abs=1e-6)


@pytest.mark.parametrize("name", RERANK_FILES)
@pytest.mark.parametrize("kind", ["euclidean", "cosine"])
def test_reranking(name, kind):
    x, labels, cameras, query, gallery, _ = case(4)
    y = x.astype(np.float64)
    if kind == "cosine":
        y /= np.linalg.norm(y, axis=1, keepdims=True)
        d = 1 - y @ y.T
    else:
        d = np.sqrt(((y[:, None] - y[None]) ** 2).sum(axis=-1))
    blocks = d[np.ix_(query, gallery)], d[np.ix_(query, query)], d[np.ix_(gallery, gallery)]
    theirs = load(name, RERANK_FILES[name]).re_ranking(*blocks, k1=20, k2=6, lambda_value=0.3)
    ours = KReciprocal(x, query=query, gallery=gallery, distance=kind)
    np.testing.assert_allclose(ours(query, gallery), theirs, atol=2e-6)
    rows = {"cameras": cameras, "query": query, "gallery": gallery}
    results = retrieval.rank_matches(x, labels, distance=ours, **rows)
    their = load(name, RANK_FILES[name]).evaluate_rank(
        theirs, labels[query], labels[gallery], cameras[query], cameras[gallery], use_cython=False
    )
    assert protocols.means(protocols.query_gallery_values(results))["mAP"] == pytest.approx(
        np.mean(their[1]), abs=1e-4
    )


def test_query_expansion():
    torch = pytest.importorskip("torch")
    x, _, _, query, gallery, _ = case(5)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    theirs = load("fastreid", "evaluation/query_expansion.py").aqe(
        torch.tensor(unit[query]), torch.tensor(unit[gallery]), qe_times=1, qe_k=5, alpha=3.0
    )
    np.testing.assert_allclose(expand(x, k=5, alpha=3.0), np.concatenate(theirs), atol=1e-6)


def test_single_gallery_shot_agrees_on_average(monkeypatch):
    monkeypatch.setattr(np, "bool", bool, raising=False)  # their code needs an older NumPy
    x, labels, cameras, query, gallery, distances = case(6)
    module = load("torchreid", RANK_FILES["torchreid"])
    arguments = (labels[query], labels[gallery], cameras[query], cameras[gallery])
    runs = []
    for seed in range(10):
        np.random.seed(seed)  # noqa: NPY002 - theirs draws from the global generator
        runs.append(module.evaluate_rank(distances[np.ix_(query, gallery)], *arguments, 10, True, False)[0])
    ours = special.rank_single_gallery_shot(
        x, labels, cameras=cameras, query=query, gallery=gallery, repeats=100
    )
    figures = protocols.single_gallery_shot_figures(ours)
    theirs = np.mean(runs, axis=0)
    assert figures["single_gallery_shot_rank-1"] == pytest.approx(theirs[0], abs=0.02)
    assert figures["single_gallery_shot_rank-10"] == pytest.approx(theirs[9], abs=0.02)
