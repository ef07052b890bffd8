"""Random numbers as a pure function of integers: no state, the same on every machine and NumPy version.

`numpy.random.Generator` keeps its streams only within a NumPy version, and draws one after the other; here
number `i` of (seed, step, slot) is there at once, so that a run can be resumed anywhere and shared between
hosts. The mixing function is SplitMix64's (Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", 2014).
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)


def _mix_array(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash_words(*words: int | np.ndarray) -> np.ndarray:
    """Hash tuples of integers to 64 random bits each.

    Args:
      words: integers, then integer arrays that broadcast together; their order matters. Leading integers are
        mixed in plain Python, which takes a tenth of the time that NumPy takes over a scalar.

    Returns:
      uint64 array of the broadcast shape, `[1]` when all words are integers.
    """
    state: int | np.ndarray = 0
    for word in words:
        if isinstance(state, int) and isinstance(word, (int, np.integer)):
            # The addition before mixing keeps (0, 0) and (0,) apart.
            state = _mix(((state ^ int(word)) + _GOLDEN) & _MASK)
        else:
            first = np.atleast_1d(np.uint64(state) if isinstance(state, int) else state)
            second = (
                np.uint64(int(word) & _MASK) if isinstance(word, int) else np.asarray(word).astype(np.uint64)
            )
            state = _mix_array((first ^ second) + np.uint64(_GOLDEN))
    return np.full(1, state, np.uint64) if isinstance(state, int) else state


def uniforms(seed: int, step: int, slots: np.ndarray, count: int) -> np.ndarray:
    """`count` uniform draws for each slot of the global batch of one step.

    Args:
      seed: the run's seed.
      step: the number of the batch.
      slots: `[b]` positions in the global batch.
      count: draws per slot.

    Returns:
      float64 `[b, count]` in [0, 1).
    """
    bits = hash_words(seed, step, np.asarray(slots)[:, None], np.arange(count)[None, :])
    return (bits >> np.uint64(11)) * 2.0**-53


def permutation(n: int, *words: int) -> np.ndarray:
    """A random order of 0..n-1 (int64 `[n]`), a pure function of the integers `words`."""
    return np.argsort(hash_words(*words, np.arange(n)), kind="stable")
