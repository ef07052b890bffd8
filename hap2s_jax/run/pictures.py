"""The pictures of a run: retrievals, a map of the embeddings, curves."""

from __future__ import annotations

import pathlib

import numpy as np

from hap2s_jax.evaluation.retrieval import nearest
from hap2s_jax.reporting import plots, selection
from hap2s_jax.reporting.pictures import retrievals
from hap2s_jax.run.trainer import Trainer

SHOWN_QUERIES = 12
SHOWN_NEIGHBOURS = 10


def draw(trainer: Trainer, embeddings: np.ndarray, present: np.ndarray, workdir: pathlib.Path) -> None:
    """Draws ``retrievals.png``, ``embeddings.png`` and ``curves.png``."""
    test = trainer.dataset.test
    plots.curves(workdir)
    readable = np.flatnonzero(present)
    if not len(readable):
        return
    shown = readable[selection.choose_for_map(test.labels[readable], seed=trainer.config.seed)]
    plots.embedding_map(embeddings[shown], trainer.images(test, shown), workdir / "embeddings.png")
    _draw_retrievals(trainer, embeddings, present, workdir / "retrievals.png")


def _draw_retrievals(
    trainer: Trainer, embeddings: np.ndarray, present: np.ndarray, path: pathlib.Path
) -> None:
    test, data = trainer.dataset.test, trainer.dataset
    labels = np.where(present, test.labels, -1)
    queries, gallery = trainer.query_and_gallery(test)
    queries = queries[labels[queries] >= 0]
    queries = queries[selection.choose_queries(test.labels[queries], SHOWN_QUERIES, seed=trainer.config.seed)]
    neighbours = nearest(
        embeddings,
        labels,
        k=min(SHOWN_NEIGHBOURS, len(gallery)),
        cameras=test.cameras if "query_gallery" in data.protocols else None,
        query=queries,
        gallery=gallery,
        distance=trainer.config.evaluate.distance,
    )
    complete = (neighbours >= 0).all(axis=1)
    queries, neighbours = queries[complete], neighbours[complete]
    if not len(queries):
        return
    images = trainer.images(test, neighbours.reshape(-1))
    retrievals(
        path,
        trainer.images(test, queries),
        images.reshape(*neighbours.shape, *images.shape[1:]),
        test.labels[neighbours] == test.labels[queries][:, None],
        query_captions=[test.class_names[label] for label in test.labels[queries]],
        title=f"Test queries of {data.name} and what the encoder finds nearest",
    )
