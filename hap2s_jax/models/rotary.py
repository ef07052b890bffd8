"""Rotary positions on a grid of patches, as DINOv3 has them (Su et al., "RoFormer", 2021; Siméoni et al., 2025)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# Of the longest wave to the shortest.
_BASE = 100.0


def angles_of(grid: tuple[int, int], channels: int) -> np.ndarray:
    """Angles `[patches, channels / 2]` for a head's pairs of channels: half of them by the row, half by the column.

    Centres of patches go from -1 to 1 along each side, whatever the number of patches.
    """
    rows, columns = (2 * np.arange(0.5, n, dtype=np.float32) / np.float32(n) - 1 for n in grid)
    centres = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2, 1)
    waves = 1 / _BASE ** np.arange(0, 1, 4 / channels, dtype=np.float32)
    return (np.float32(2 * np.pi) * centres * waves).reshape(len(centres), -1)


def turn(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Turns the last tokens of `x` `[n, t, heads, c]` by `angles` `[patches, c / 2]`; those before them stay."""
    before = x.shape[1] - len(angles)
    cosine, sine = (jnp.asarray(f(angles), x.dtype)[None, :, None] for f in (np.cos, np.sin))
    first, second = jnp.split(x[:, before:], 2, axis=-1)
    cosine, sine = jnp.broadcast_to(cosine, first.shape), jnp.broadcast_to(sine, first.shape)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return jnp.concatenate([x[:, :before], turned], axis=1)
