"""Evaluation: retrieval and clustering metrics as pure functions of arrays, and the protocols made of them.

    from hap2s_jax import evaluation
    evaluation.evaluate(embeddings, labels)                                         # CUB style
    evaluation.evaluate(embeddings, labels, cameras, query=q, gallery=g, protocols=("query_gallery",))

The metrics import jax and NumPy only. `hap2s_jax.evaluation.embed`, which runs an encoder over a data set, is
not imported here.
"""

from hap2s_jax.evaluation.protocols import evaluate

__all__ = ["evaluate"]
