"""State dicts as torchvision has them, of random numbers, without torch."""

import numpy as np


def small_state(seed=0):
    """A ResNet-18 of random numbers with torchvision's names, without torch."""
    rng = np.random.default_rng(seed)
    state = {}

    def norm(name, channels):
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{tensor}"] = rng.uniform(0.5, 1.5, channels).astype(np.float32)
        state[f"{name}.num_batches_tracked"] = np.array(7)

    def conv(name, out, into, side):
        state[f"{name}.weight"] = rng.normal(size=(out, into, side, side)).astype(np.float32)

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    into = 64
    for stage, out in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            prefix = f"layer{stage}.{block}"
            conv(f"{prefix}.conv1", out, into, 3)
            norm(f"{prefix}.bn1", out)
            conv(f"{prefix}.conv2", out, out, 3)
            norm(f"{prefix}.bn2", out)
            if into != out:
                conv(f"{prefix}.downsample.0", out, into, 1)
                norm(f"{prefix}.downsample.1", out)
            into = out
    state["fc.weight"] = rng.normal(size=(1000, 512)).astype(np.float32)
    state["fc.bias"] = rng.normal(size=1000).astype(np.float32)
    return state
