"""Draws docs/losses_weights.png: how much a sample counts against its distance, for positives and
negatives."""

from pathlib import Path

import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from hap2s_jax import exponential, polynomial, uniform

WEIGHTINGS = {
    "exponential(0.2)": exponential(0.2),
    "exponential(0.5)": exponential(0.5),
    "polynomial(2)": polynomial(2.0),
    "polynomial(10)": polynomial(10.0),
    "uniform()": uniform(),
}


def main() -> None:
    """Writes the picture beside this script."""
    distances = jnp.linspace(0, 2, 201)
    everything = jnp.ones_like(distances, bool)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharex=True)
    for name, weighting in WEIGHTINGS.items():
        for axis, function in zip(axes, (weighting.positive, weighting.negative), strict=True):
            logs = function(distances, everything)
            axis.semilogy(distances, jnp.exp(logs - logs[0]), label=name)
    axes[0].set_title("positives")
    axes[1].set_title("negatives")
    axes[1].legend()
    for axis in axes:
        axis.set_xlabel("distance")
        axis.set_ylabel("weight against that at distance 0")
        axis.set_ylim(1e-5, 1e5)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("losses_weights.png"), dpi=100)


if __name__ == "__main__":
    main()
