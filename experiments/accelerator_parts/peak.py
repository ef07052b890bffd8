"""The peak of the device: rates of large matrix products, of which shares are given."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from accelerator_parts.record import Record

# Kind: dtype and precision.
KINDS: dict[str, tuple[Any, Any]] = {
    "float32": (jnp.float32, "highest"),
    "tf32": (jnp.float32, "default"),
    "bfloat16": (jnp.bfloat16, "default"),
}
# float32 made of three TF32 products, nearly as exact; GPUs alone have it.
_ON_GPU = {"3 x tf32": (jnp.float32, "TF32_TF32_F32_X3")}


def matmul_rates(record: Record) -> dict[str, float]:
    """Operations a second of a large product of random numbers, by kind; each is a row with its error beside it."""
    n = 64 if record.toy else 8192
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((n, n), dtype=np.float32) for _ in range(2))
    exact = a[:64].astype(np.float64) @ b.astype(np.float64)
    rates = {}
    kinds = KINDS | (_ON_GPU if jax.default_backend() == "gpu" else {})
    for kind, (dtype, precision) in kinds.items():
        with record.trying(f"peak, {kind}"):
            left, right = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
            product = jax.jit(lambda x, y, how=precision: jnp.matmul(x, y, precision=how))
            found = np.asarray(product(left, right)[:64], np.float64)
            times = []
            for _ in range(5):
                start = time.perf_counter()
                jax.block_until_ready(product(left, right))
                times.append(time.perf_counter() - start)
            rates[kind] = 2.0 * n**3 / statistics.median(times)
            error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
            record.row(f"peak, {kind}", tflops=rates[kind] / 1e12, relative_error=error)
    return rates
