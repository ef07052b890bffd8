"""Curves of a run and the map of its embeddings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hap2s_jax.data.places import place
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.reporting.metric_log import read_metrics
from hap2s_jax.reporting.pictures import mosaic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Line = tuple[npt.NDArray[Any], npt.NDArray[Any]]

# Okabe and Ito (2008), without the yellow that vanishes on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#1f2328")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.parse_math": False,  # names of classes and files may hold a $
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8c959f",
    "axes.labelcolor": "#57606a",
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "axes.grid": True,
    "grid.color": "#e6eaee",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
}
_LABELS = {"mean_positive_distance": "positive pairs", "mean_negative_distance": "negative pairs"}
# Largest number of points that t-SNE gets: 3,000 of 128 dimensions take 7 s, 1,500 take 3 s, on one CPU core.
_TSNE_LIMIT = 3000


def curves(workdir: str | os.PathLike[str]) -> Path:
    """Draws `curves.png`: loss, distances, active fraction and validation metrics over the steps.

    The numbers are those of `metrics.jsonl`: the last part of a name says what it is (loss,
    mean_positive_distance, mean_negative_distance, active_fraction), what stands before it, where it was
    measured ("train/loss" or only "loss"; "validation/map@r"). The last panel shows the validation metrics
    within 0 to 1, at most 6. A panel without numbers says so.

    Returns:
      The path that was written.

    Raises:
      UserError: no log in the folder, or the file cannot be written.
    """
    series = _series(read_metrics(workdir))
    target = place(workdir) / "curves.png"
    in_validation = {
        name.partition("/")[2]: points for name, points in series.items() if name.startswith("validation/")
    }
    fractions = [n for n, (_, y) in in_validation.items() if not np.any((y < 0) | (y > 1))][:6]

    def train(*names: str) -> dict[str, _Line]:
        found = {name: series.get(f"train/{name}", series.get(name)) for name in names}
        return {name: points for name, points in found.items() if points is not None}

    panels: list[tuple[str, dict[str, _Line], bool]] = [
        ("Training loss", train("loss"), True),
        ("Mean distance in the batch", train("mean_positive_distance", "mean_negative_distance"), True),
        ("Active anchors (share with a loss above 0)", train("active_fraction"), True),
        ("Validation classes", {n: in_validation[n] for n in fractions}, False),
    ]
    import matplotlib

    with matplotlib.rc_context(rc=STYLE):
        figure = empty_figure(11, 6.6)
        all_axes = figure.subplots(2, 2).ravel()
        last = max((steps[-1] for steps, _ in series.values()), default=1)
        for axes, (name, lines, smooth) in zip(all_axes, panels, strict=True):
            _draw_panel(axes, name, lines, smooth)
            axes.set_xlim(0, last * 1.02)
        # Fractions get the whole range, so that 0.98 looks close to 1.
        all_axes[2].set_ylim(-0.02, 1.02)
        save(figure, target)
    return target


def embedding_map(embeddings: npt.ArrayLike, images: npt.ArrayLike, path: str | os.PathLike[str]) -> None:
    """Draws the embeddings in two dimensions, each image at its place: similar ones lie close together.

    The plane is t-SNE (van der Maaten and Hinton, 2008; scikit-learn's), started from the principal
    components; these alone for more than 3,000 points, fewer than 10, or without scikit-learn. The picture
    says which. Thumbnails move to the nearest free place, so that none hides another.

    Args:
      embeddings: `[n, d]`.
      images: `[n, h, w, 3]` uint8, drawn as thumbnails.
      path: the PNG file to write.

    Raises:
      ValueError: shapes that do not fit, or embeddings that are not finite.
      UserError: the file cannot be written.
    """
    points = np.asarray(embeddings, dtype=np.float32)
    if points.ndim != 2 or not len(points) or not np.isfinite(points).all():
        raise ValueError(
            f"embeddings is {points.dtype} {points.shape}; it should be finite numbers [n, d], n > 0"
        )
    images = np.asarray(images)
    if len(images) != len(points):
        raise ValueError(f"images has {len(images)} entries; it should have {len(points)}")
    plane, method = _plane(points)
    heading = f"{len(points):,} embeddings"
    caption = f"{method} of {points.shape[1]} dimensions"
    mosaic(images, _cells(plane), path, title=heading, note=caption)


def _series(records: Sequence[Mapping[str, float]]) -> dict[str, _Line]:
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step":
                points.setdefault(name, []).append((record["step"], value))
    columns = {name: np.asarray(pairs, dtype=np.float64).T for name, pairs in points.items()}
    return {name: (steps, values) for name, (steps, values) in columns.items()}


def _draw_panel(axes: Axes, title: str, lines: Mapping[str, _Line], smooth: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if not lines:
        axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center", color="#8c959f")
        axes.set_yticks([])
        return
    lines = _merged({_LABELS.get(name, name): line for name, line in lines.items()})
    for (label, (steps, values)), colour in zip(lines.items(), _COLOURS, strict=False):
        few = len(steps) <= 30
        if smooth and not few:
            axes.plot(steps, values, color=colour, alpha=0.28, linewidth=0.9)
            values = _smoothed(values)
        axes.plot(
            steps,
            values,
            color=colour,
            linewidth=1.9,
            marker="o" if few else None,
            markersize=3.5,
            label=label,
        )
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor="#1f2328", ncols=1 + (len(lines) > 3))
    if not any(np.any(values < 0) for _, values in lines.values()):
        # Set by hand: with 0 far below all values, the highest point would lie on the edge, half cut off.
        top = 1.05 * axes.dataLim.y1
        axes.set_ylim(0, top if np.isfinite(top) and top > 0 else None)


def _merged(lines: Mapping[str, _Line]) -> dict[str, _Line]:
    """Joins equal lines (as when all figures are 1) to one: each would hide the one before."""
    found: dict[str, _Line] = {}
    for label, line in lines.items():
        same = next((other for other in found if np.array_equal(found[other], line, equal_nan=True)), None)
        if same is None:
            found[label] = line
        else:
            found = {f"{k}, {label}" if k == same else k: v for k, v in found.items()}
    return found


def _smoothed(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Centred mean of the finite values within a fiftieth of the curve on either side."""
    half = max(1, len(values) // 50)
    finite = np.isfinite(values)
    kernel = np.ones(2 * half + 1)
    total = np.convolve(np.where(finite, values, 0.0), kernel)[half:-half]
    count = np.convolve(finite, kernel)[half:-half]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _plane(points: npt.NDArray[np.float32]) -> tuple[npt.NDArray[Any], str]:
    centred = points - points.mean(axis=0)
    # Eigenvectors of the small [d, d] matrix, since n may be large.
    _, axes = np.linalg.eigh(centred.T @ centred)
    plane = np.zeros((len(points), 2))
    best = (centred @ axes[:, ::-1])[:, :2]
    plane[:, : best.shape[1]] = best
    spread = plane[:, 0].std()
    if not 10 <= len(points) <= _TSNE_LIMIT or spread == 0:
        return plane, "Principal components"
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError:
        return plane, "Principal components"
    start: Any = (plane / spread * 1e-4).astype(np.float32)
    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(init=start, perplexity=perplexity, max_iter=500, random_state=0)
    # On cores in use by others, its threads spin waiting for each other: we saw 47 s instead of 6 s.
    with threadpool_limits(1):
        return tsne.fit_transform(points / spread), "t-SNE"


def _cells(plane: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Column and row `[n, 2]` of the nearest free cell, on a grid with half as many cells again as points."""
    low, high = plane.min(axis=0), plane.max(axis=0)
    unit = (plane - low) / np.where(high > low, high - low, 1)
    side = max(1, int(np.ceil(np.sqrt(1.5 * len(plane)))))
    wanted = unit * (side - 1)
    x, y = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    free = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)
    cells = np.zeros((len(plane), 2), dtype=np.int64)
    # From the middle outwards: the last ones are pushed to the rim, where there is room.
    for i in np.argsort(((wanted - wanted.mean(axis=0)) ** 2).sum(axis=1), kind="stable"):
        nearest = np.argmin(((free - wanted[i]) ** 2).sum(axis=1))
        cells[i] = free[nearest]
        free[nearest] = np.inf
    return cells


def empty_figure(width: float, height: float) -> Figure:
    """A figure of `width` x `height` inches that pyplot does not know: it would keep it and open windows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(width, height), dpi=140, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes the figure as a PNG file."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140)
