"""Is it right there? Precision, gradients, shards, ties, a run that is resumed, and the tests of losses and metrics."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench.losses import batch

from accelerator_parts import job, suites
from accelerator_parts.record import Goal, Record
from configs import emoji
from hap2s_jax import losses
from hap2s_jax.distances import pairwise_distances
from hap2s_jax.evaluation import inputs, retrieval, symmetric
from hap2s_jax.run.trainer import Trainer

# Relative errors against float64 on the same device. float32 with exact products stays below; TF32 is at 3e-4.
_PRODUCTS: Goal = ("<=", 2e-6)
_VALUE: Goal = ("<=", 1e-5)
_GRADIENT: Goal = ("<=", 1e-4)
_SHARDS: Goal = ("<=", 1e-5)
AXIS = "devices"
# The others are in the tests.
_LOSSES = ("hap2s_e", "batch_hard", "hap2s_p", "hap2s_ranked", "nt_xent", "multi_similarity", "softmax")


def run(record: Record, seeds: Sequence[int]) -> None:
    """The cheapest checks first; each is a row or several."""
    checks: tuple[Callable[[Record], None], ...] = (
        precision,
        extremes,
        some_losses,
        symmetric_ranks,
        resumed,
    )
    for check in checks:
        with record.trying(check.__name__.replace("_", " "), seconds=1.0 if record.toy else 10.0):
            check(record)
    suites.run(record)


def precision(record: Record) -> None:
    """Whether "highest" is float32, and the distances take it; the default is shown beside it."""
    n = 64 if record.toy else 4096
    x, _ = batch(n, 128)
    exact = _distances64(x)
    off = ~np.eye(n, dtype=bool)
    found = np.asarray(jax.jit(pairwise_distances)(x), np.float64)
    error = _relative(found[off], exact[off])
    row: dict[str, Any] = {"distances": error}
    product = x.astype(np.float64) @ x.T.astype(np.float64)
    for how in ("highest", "default"):
        row[how] = _relative(np.asarray(jnp.matmul(x, x.T, precision=how), np.float64), product)
    record.row("precision", {"distances": _PRODUCTS, "highest": _PRODUCTS}, **row)


def extremes(record: Record) -> None:
    """Gradients that JAX finds by comparing with the maximum: a maximum computed twice must be the same twice."""
    n = 64 if record.toy else 2048
    x, labels = batch(n, 128)
    tied = np.concatenate([x[: n // 2], x[: n // 2]])  # every distance to another class stands there twice

    def hardest(x: jax.Array, labels: jax.Array) -> jax.Array:
        return losses.batch_hard_loss(x, labels, margin=1.0)

    def furthest(x: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.mean(jnp.max(pairwise_distances(x), axis=1))

    def nearest(x: jax.Array, labels: jax.Array) -> jax.Array:
        distances = jnp.where(labels[:, None] == labels, jnp.inf, pairwise_distances(x))
        return jnp.mean(jnp.min(distances, axis=1))

    for name, function in (("batch-hard", hardest), ("max", furthest), ("min", nearest)):
        program = jax.jit(jax.value_and_grad(function))
        for kind, rows in (("distinct", x), ("ties", tied)):
            value, slope = _errors(program, rows, labels)
            goals = {"value_error": _VALUE, "gradient_error": _GRADIENT}
            record.row(f"{name}, {kind}", goals, value_error=value, gradient_error=slope)


def some_losses(record: Record) -> None:
    """Some losses in float32 against float64, and over eight shards of the batch against the whole."""
    x, labels = batch(64 if record.toy else 512, 64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    for name in _LOSSES[:2] if record.toy else _LOSSES:
        with record.trying(f"loss {name}", seconds=1.0):
            loss = losses.create(name)
            params = loss.init_params(jax.random.key(0), int(labels.max()) + 1, x.shape[1])

            def whole(x: Any, labels: Any, loss: Any = loss, params: Any = params) -> Any:
                return loss(x, labels, params=params, with_stats=False)

            program = jax.jit(jax.value_and_grad(whole))
            value, slope = _errors(program, x, labels)
            figures = {"value_error": value, "gradient_error": slope}
            figures["shards_value"], figures["shards_gradient"] = _sharded(program, loss, params, x, labels)
            goals = {"value_error": _VALUE, "gradient_error": _GRADIENT}
            record.row(
                f"loss {name}", goals | {"shards_value": _SHARDS, "shards_gradient": _GRADIENT}, **figures
            )


def symmetric_ranks(record: Record) -> None:
    """The ranks from tiles on and above the diagonal, taken on CPUs alone today, beside those of whole blocks."""
    n = 90 if record.toy else 20_000
    random = np.random.default_rng(0)
    labels = np.sort(np.arange(n) % (n // 5))
    smooth = random.standard_normal((n, 64)).astype(np.float32)
    for kind, x in (
        ("distinct", smooth),
        ("ties", np.round(smooth[:, :6])),
        ("twins", np.repeat(smooth[::2], 2, 0)),
    ):
        problem = inputs.check_problem(x, labels, None, None, None)
        for ties in retrieval.TIES:
            halved, _ = symmetric.rank_all(
                problem,
                inputs.space(problem.embeddings, "euclidean"),
                strict=ties == "optimistic",
                first_only=False,
                devices=jax.local_devices()[:1],
            )
            # Blocks of a given size are whole ones.
            whole = retrieval.rank_matches(x, labels, block_size=512, ties=ties)
            ranks = np.stack([whole.matches, whole.first_rank, whole.last_rank], axis=1)
            different = int(np.sum(halved != ranks))
            record.row(f"symmetric ranks, {kind}, {ties}", {"different": ("==", 0)}, different=different)


def resumed(record: Record) -> None:
    """Whether a run that was stopped and resumed ends with the same bits; deterministic operations are on."""
    config = emoji.get_config("tiny" if record.toy else "gpu")
    config.num_devices = 1
    config.update_from_flattened_dict(job.TOY if record.toy else {})
    steps = 4 if record.toy else 20
    trainer = Trainer.create(config.lock())

    def advance(state: Any, first: int, last: int) -> Any:
        state, batches = trainer.parallel.replicate(state), trainer.train_batches(first)
        for _ in range(first, last):
            state, _ = trainer.update(state, next(batches))
        return state

    # Every update takes the memory of the state that it is given.
    straight = jax.device_get(advance(trainer.initial_state(), 0, steps))
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = trainer.checkpointer(Path(folder))
        checkpointer.save(advance(trainer.initial_state(), 0, steps // 2), None)
        again = checkpointer.restore(trainer.initial_state(), steps // 2)
        checkpointer.close()
    stopped = jax.device_get(advance(again, steps // 2, steps))
    pairs = zip(jax.tree.leaves(straight), jax.tree.leaves(stopped), strict=True)
    differ = sum(bool(np.any(np.asarray(a) != np.asarray(b))) for a, b in pairs)
    record.row("resumed", {"arrays_that_differ": ("==", 0)}, arrays_that_differ=differ, steps=steps)


def _errors(program: Callable[..., Any], x: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Relative errors of the value and of the gradient in float32, against float64 on the same device."""
    value, slope = program(jnp.asarray(x), jnp.asarray(labels))
    with jax.enable_x64(True):
        exact = jax.device_get(program(jnp.asarray(x, jnp.float64), jnp.asarray(labels)))
    return _relative(value, exact[0]), _relative(slope, exact[1])


def _sharded(
    program: Callable[..., Any], loss: Any, params: Any, x: np.ndarray, labels: np.ndarray
) -> tuple[float, float]:
    """Relative differences of value and gradient between eight shards, by vmap, and the whole batch."""

    def on_shard(x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        def value(x: jax.Array) -> jax.Array:
            return loss(x, labels, params=params, with_stats=False, axis_name=AXIS)

        found, slope = jax.value_and_grad(value)(x)
        return found, slope / 8  # of the global mean, of which each shard has the whole

    shards = x.reshape(8, -1, x.shape[1]), labels.reshape(8, -1)
    values, slopes = jax.jit(jax.vmap(on_shard, axis_name=AXIS))(*shards)
    value, slope = program(jnp.asarray(x), jnp.asarray(labels))
    return _relative(np.asarray(values), np.full(8, value)), _relative(
        np.asarray(slopes).reshape(x.shape), slope
    )


def _distances64(x: np.ndarray) -> np.ndarray:
    squares = np.square(x.astype(np.float64)).sum(1)
    product = x.astype(np.float64) @ x.T.astype(np.float64)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * product, 0))


def _relative(found: Any, exact: Any) -> float:
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    return float(np.linalg.norm(found - exact) / max(np.linalg.norm(exact), 1e-12))
