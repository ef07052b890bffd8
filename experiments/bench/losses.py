"""Calls of the losses, of the bare matrix products, and of peers, value and gradient; see `benchmark_losses.py`.

Libraries are imported inside functions: whoever measures memory wants no more of them than a method needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

IMAGES_PER_CLASS = 4
PEERS = ("pml", "torch")


def batch(n: int, d: int, images: int = IMAGES_PER_CLASS) -> tuple[Any, Any]:
    """Embeddings `[n, d]` of about unit length in shuffled classes of so many images."""
    import numpy as np

    random = np.random.default_rng(0)
    labels = random.permutation(np.arange(n) // images).astype(np.int32)
    centres = random.normal(size=(labels.max() + 1, d))
    x = (centres[labels] + random.normal(size=(n, d))) / (2 * d) ** 0.5
    return x.astype(np.float32), labels


def jax_function(name: str, n: int, d: int) -> tuple[Any, tuple[Any, Any]]:
    """The compiled program called `name` and its arguments; a name that ends in "_tf32" has the products coarser.

    The coarse products are the default of `jnp.matmul` on NVIDIA cards; the losses never take them by themselves.
    """
    import jax
    import jax.numpy as jnp
    from jax import lax

    from hap2s_jax import distances, hap2s_loss

    # The engine's own jit would hand out what it traced with other products: lower this before the next is made.
    jax.clear_caches()
    x, labels = (jnp.asarray(part) for part in batch(n, d))
    kind, _, coarse = name.partition("_")
    precision = lax.Precision.DEFAULT if coarse else lax.Precision.HIGHEST

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, precision=precision)

    def matmul(x: jax.Array, labels: jax.Array) -> jax.Array:
        del labels
        if n <= 8192:
            gram = product(x, x.T)
            return product(gram, x) + product(gram.T, x)

        def step(total: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
            gram = product(rows, x.T)
            return total + product(gram.T, rows), product(gram, x)

        total, parts = lax.scan(step, jnp.zeros_like(x), x.reshape(-1, 512, d))
        return total + parts.reshape(n, d)

    def loss(x: jax.Array, labels: jax.Array) -> jax.Array:
        with mock.patch.object(distances, "products", lambda a, b: product(a, b.T)):
            return hap2s_loss(x, labels)

    return jax.jit(matmul if kind == "matmul" else jax.value_and_grad(loss)), (x, labels)


def loss_function(name: str, n: int, d: int) -> tuple[Any, tuple[Any, ...]]:
    """Value and gradient of a loss by its name, and its arguments; "smooth_ap@16" has 16 images a class.

    "logits@k" is the product of the embeddings with k points of each class, and its gradient by both; "proxies" that
    with points in rows.
    """
    import jax
    import jax.numpy as jnp

    from hap2s_jax import losses

    name, _, count = name.partition("@")
    x, labels = (jnp.asarray(part) for part in batch(n, d, int(count or IMAGES_PER_CLASS)))
    if name in ("logits", "proxies"):
        x, labels = (jnp.asarray(part) for part in batch(n, d))
        points = jax.random.normal(jax.random.key(0), (d, n // IMAGES_PER_CLASS * int(count or 1)))
        if name == "proxies":
            points = points.T

        def product(x: jax.Array, points: jax.Array) -> tuple[jax.Array, ...]:
            of = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
            if name == "proxies":
                logits = of(x, points.T)
                return of(logits, points), of(logits.T, x)
            logits = of(x, points)
            return of(logits, points.T), of(x.T, logits)

        return jax.jit(product), (x, points)
    loss = losses.create(name)
    params = loss.init_params(jax.random.key(0), n // IMAGES_PER_CLASS, d)
    of = jax.value_and_grad(lambda x, params, labels: loss(x, labels, params=params), argnums=(0, 1))
    return jax.jit(of), (x, params, labels)


def logits_of(name: str) -> str | None:
    """The product under a loss against points of classes, see `loss_function`."""
    from hap2s_jax import losses

    if name not in losses.names() or not losses.create(name).has_params:
        return None
    if name.startswith("proxy"):
        return "proxies"
    return f"logits@{losses.hyperparameters(name).get('centres', 1)}"


def jax_method(name: str, n: int, d: int) -> Callable[[], Any]:
    """A call that runs `name` to its end."""
    import jax

    is_method = name.startswith(("matmul", "hap2s")) and name not in ("hap2s_e", "hap2s_p")
    call, given = (jax_function if is_method else loss_function)(name, n, d)
    return lambda: jax.block_until_ready(call(*given))


def torch_hap2s(x: Any, labels: Any, sigma: float = 0.5, margin: float = 0.3) -> Any:
    """HAP2S_E as it is written by hand: the whole distance matrix, masks, two softmaxes. No class has one member."""
    import torch

    squares = (x * x).sum(1)
    squared = (squares[:, None] + squares - 2 * x @ x.T).clamp_min(1e-12)
    distances = squared.sqrt()
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)

    def to_set(logs: Any, mask: Any) -> Any:
        return (torch.softmax(logs.masked_fill(~mask, -torch.inf), 1) * distances).sum(1)

    near, far = to_set(distances / sigma, positive), to_set(-distances / sigma, ~same)
    return torch.relu(near - far + margin).mean()


def torch_method(name: str, n: int, d: int, threads: int) -> Callable[[], Any]:
    """A call that runs a peer's value and gradient, on the GPU where there is one."""
    import torch

    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, labels = batch(n, d)
    inputs, target = torch.from_numpy(x).to(device), torch.from_numpy(labels).long().to(device)
    loss = torch_hap2s if name == "torch" else _metric_learning(name)

    def call() -> Any:
        embeddings = inputs.clone().requires_grad_()
        loss(embeddings, target).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return embeddings.grad

    return call


def _metric_learning(name: str) -> Callable[[Any, Any], Any]:
    """A loss of pytorch-metric-learning."""
    from pytorch_metric_learning import distances, losses, miners

    if name == "pml_bh":
        euclidean = distances.LpDistance(normalize_embeddings=False)
        triplets, miner = (
            losses.TripletMarginLoss(0.3, distance=euclidean),
            miners.BatchHardMiner(distance=euclidean),
        )
        return lambda x, labels: triplets(x, labels, miner(x, labels))
    return {"pml_ms": losses.MultiSimilarityLoss, "pml_nt": losses.NTXentLoss}[name]()


def method(name: str, n: int, d: int, threads: int) -> Callable[[], Any]:
    """A call of any method."""
    return torch_method(name, n, d, threads) if name.startswith(PEERS) else jax_method(name, n, d)
