"""Evaluation: retrieval and clustering metrics as pure functions of arrays, and the protocols made of them.

    from hap2s_jax import evaluation
    evaluation.evaluate(embeddings, labels)                                         # CUB style
    evaluation.evaluate(embeddings, labels, cameras, query=q, gallery=g, protocols=("query_gallery",))
    evaluation.verification(embeddings, labels)                                     # are two images of one class?
    evaluation.open_set(embeddings, labels, query=q, gallery=g, threshold=t)        # is this one known at all?

The metrics import jax and NumPy only. `hap2s_jax.evaluation.embed`, which runs an encoder over a data set, is
not imported here.
"""

from hap2s_jax.evaluation.pairs import verification
from hap2s_jax.evaluation.protocols import evaluate
from hap2s_jax.evaluation.unknowns import open_set

__all__ = ["evaluate", "open_set", "verification"]
