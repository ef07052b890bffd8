"""The two sweeps over tiles beside their NumPy twin, written from the equations in `hap2s_jax.losses.tiles`."""

import jax
import numpy as np
import pytest
from loss_batches import CORNER_LABELS, CORNERS, clustered

from hap2s_jax import exponential, hap2s_loss, polynomial


def exponential_logs(sign, sigma):
    """l(d), dl/dd and dl/dtheta of exp(sign d / sigma)."""
    return lambda d: (sign * d / sigma, np.full_like(d, sign / sigma), -sign * d / sigma**2)


def polynomial_logs(sign, alpha):
    power = 1.0 if sign > 0 else -2.0
    return lambda d: (power * alpha * np.log1p(d), power * alpha / (1 + d), power * np.log1p(d))


def twin(x, labels, logs, margin, tile):
    """Total loss over anchors, and its gradients by `x` and by the weightings' number, tile by tile in float64."""
    x, n = np.asarray(x, np.float64), len(x)
    tiles = [range(i, min(i + tile, n)) for i in range(0, n, tile)]
    pairs = [(i, j) for i in range(len(tiles)) for j in range(i, len(tiles))]

    def members(a, b):
        return 0 if a != b and labels[a] == labels[b] else 1 if labels[a] != labels[b] else None

    # The first sweep: (1) by (2).
    L, Z, M = np.full((2, n), -1e30), np.zeros((2, n)), np.zeros((2, n))
    for i, j in pairs:
        for a in tiles[i]:
            for b in tiles[j]:
                s, d = members(a, b), np.linalg.norm(x[a] - x[b])
                for anchor in (a,) if i == j else (a, b):
                    if s is not None:
                        log = logs[s](d)[0]
                        largest = max(L[s, anchor], log)
                        fade, weight = np.exp(L[s, anchor] - largest), np.exp(log - largest)
                        L[s, anchor] = largest
                        Z[s, anchor] = Z[s, anchor] * fade + weight
                        M[s, anchor] = M[s, anchor] * fade + weight * d
    valid = (Z > 0).all(axis=0)
    D = M / np.where(Z > 0, Z, 1)
    excess = D[0] - D[1] + margin
    # (3) with v = 1 / number of valid anchors
    v = valid / valid.sum()
    slopes = np.stack([v, -v]) * (excess > 0)
    # The second sweep: (5) and (6).
    of_x, of_theta = np.zeros_like(x), 0.0
    for i, j in pairs:
        for a in tiles[i]:
            for b in tiles[j]:
                s, d = members(a, b), np.linalg.norm(x[a] - x[b])
                if s is None:
                    continue
                log, by_distance, by_theta = logs[s](d)
                r = q = 0.0
                for anchor in (a,) if i == j else (a, b):
                    if valid[anchor]:
                        share = slopes[s, anchor] * np.exp(log - L[s, anchor]) / Z[s, anchor]
                        r, q = r + share, q + share * (d - D[s, anchor])
                of_theta += q * by_theta
                of_x[a] += (r + q * by_distance) * (x[a] - x[b]) / d
                of_x[b] -= (r + q * by_distance) * (x[a] - x[b]) / d
    return (v * np.maximum(excess, 0)).sum(), of_x, of_theta


FORMS = {"e": (exponential, exponential_logs, 0.5), "p": (polynomial, polynomial_logs, 3.0)}


def test_the_twin_by_hand():
    logs = [exponential_logs(1, 1.0), exponential_logs(-1, 1.0)]
    value, _, _ = twin(CORNERS, CORNER_LABELS, logs, 3.0, 3)
    np.testing.assert_allclose(value, 3 - (4 * np.e + 5) / (np.e + 1) + 3, rtol=1e-12)


@pytest.mark.parametrize("form", list(FORMS))
def test_both_sweeps_equal_their_twin(form):
    make, logs, number = FORMS[form]
    x, labels = clustered(70, [4, 1, 3, 5], dim=5)
    logs = [logs(np.array(1.0), number), logs(np.array(-1.0), number)]
    expected = twin(x, labels, logs, 1.0, 4)

    def loss(x, number):
        return hap2s_loss(x, labels, weighting=make(number), margin=1.0, block_size=4)

    value, (of_x, of_number) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, number)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(of_x, expected[1], atol=1e-5)
    np.testing.assert_allclose(of_number, expected[2], rtol=1e-4)
