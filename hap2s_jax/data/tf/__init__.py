"""The input pipeline; with `hap2s_jax.data.builders` the only importers of TensorFlow and TFDS."""
