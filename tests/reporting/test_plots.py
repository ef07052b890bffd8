import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hap2s_jax.errors import UserError
from hap2s_jax.reporting import plots
from hap2s_jax.reporting.metric_log import MetricLog
from hap2s_jax.reporting.plots import curves, embedding_map


def _log(workdir: Path, steps: int) -> Path:
    with MetricLog(workdir, tensorboard=False) as log:
        for step in range(1, steps + 1):
            log.write(
                step,
                {
                    "train/loss": 1 / step,
                    "train/mean_positive_distance": 0.5,
                    "train/mean_negative_distance": 0.5 + step,
                    "train/active_fraction": 0.9,
                },
            )
            if step % 20 == 0:
                log.write(step, {"validation/mAP": 0.4, "validation/queries": 2900})
    return workdir


@pytest.mark.parametrize("steps", [0, 1, 2, 200])
def test_curves_of_a_run_of_any_length(tmp_path: Path, steps: int) -> None:
    path = curves(_log(tmp_path, steps))
    assert path == tmp_path / "curves.png"
    assert Image.open(path).size == (1540, 924)


def test_curves_with_nan_and_bare_names(tmp_path: Path) -> None:
    with MetricLog(tmp_path, tensorboard=False) as log:
        for step in range(1, 60):
            log.write(
                step, {"loss": float("nan") if step % 3 else float("inf"), "active_fraction": float("nan")}
            )
        log.write(60, {"validation/mAP": float("nan")})
    assert curves(tmp_path).exists()


def test_no_log_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="workdir must be the folder of a training run"):
        curves(tmp_path)


def test_only_metrics_within_0_to_1_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    monkeypatch.setattr(
        plots, "_draw_panel", lambda axes, title, lines, smooth: drawn.update({title: sorted(lines)})
    )
    curves(_log(tmp_path, 40))
    assert drawn["Validation classes"] == ["mAP"]
    assert drawn["Mean distance in the batch"] == ["mean_negative_distance", "mean_positive_distance"]


def test_lines_that_are_equal_are_drawn_as_one() -> None:
    steps, full, less = np.arange(4.0), np.ones(4), np.array([0.5, 1, 1, 1])
    lines = {"map@r": (steps, full), "recall@1": (steps, less), "mrr": (steps, full), "f1": (steps, full)}
    merged = plots._merged(lines)
    assert list(merged) == ["map@r, mrr, f1", "recall@1"]
    assert merged["recall@1"][1] is less


def test_smoothing_keeps_a_line_and_skips_what_is_not_finite() -> None:
    values = np.full(200, 3.0)
    values[50] = np.nan
    np.testing.assert_allclose(plots._smoothed(values), 3.0)
    ramp = np.arange(300.0)
    np.testing.assert_allclose(plots._smoothed(ramp)[10:-10], ramp[10:-10])


def test_classes_that_are_apart_stay_together_on_the_map() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 12)
    points = (generator.normal(size=(10, 32))[labels] * 3 + generator.normal(size=(120, 32)) * 0.1).astype(
        np.float32
    )
    plane, method = plots._plane(points)
    assert method == "t-SNE"
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=-1) + np.eye(120) * 1e9
    assert (labels[distances.argmin(axis=1)] == labels).all()
    cells = plots._cells(plane)
    assert len(np.unique(cells, axis=0)) == 120
    distances = np.linalg.norm(cells[:, None] - cells[None], axis=-1) + np.eye(120) * 1e9
    assert (labels[distances.argmin(axis=1)] == labels).mean() > 0.8


@pytest.mark.parametrize(("number", "width"), [(1, 4), (2, 1), (9, 3), (10, 1), (40, 16)])
def test_a_map_of_any_size(tmp_path: Path, number: int, width: int) -> None:
    points = np.random.default_rng(0).normal(size=(number, width))
    images = np.full((number, 8, 8, 3), 128, np.uint8)
    embedding_map(points, images, tmp_path / "map.png")
    assert ((np.asarray(Image.open(tmp_path / "map.png")) == 128).all(axis=-1).sum()) == number * 38 * 38


def test_a_collapsed_encoder_still_has_a_map(tmp_path: Path) -> None:
    embedding_map(np.ones((50, 8)), np.zeros((50, 8, 8, 3), np.uint8), tmp_path / "map.png")
    assert (tmp_path / "map.png").exists()


def test_large_sets_take_the_principal_components() -> None:
    points = np.random.default_rng(0).normal(size=(5000, 4)).astype(np.float32) * np.array(
        [1, 9, 5, 1], np.float32
    )
    plane, method = plots._plane(points)
    assert method == "Principal components"
    assert abs(np.corrcoef(plane[:, 0], points[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(plane[:, 1], points[:, 2])[0, 1]) > 0.99


def test_without_scikit_learn_the_principal_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert (
        plots._plane(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))[1]
        == "Principal components"
    )


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"embeddings is .*; it should be finite numbers \[n, d\]"):
        embedding_map(np.full((3, 2), np.nan), np.zeros((3, 8, 8, 3), np.uint8), tmp_path / "x.png")
    with pytest.raises(ValueError, match="images has 2 entries; it should have 3"):
        embedding_map(np.ones((3, 2)), np.zeros((2, 8, 8, 3), np.uint8), tmp_path / "x.png")
