# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Evaluate embeddings of any framework
#
# The metrics are functions of arrays, so the embeddings may come from anywhere: PyTorch (`tensor.numpy()`),
# TensorFlow, scikit-learn, a file. Here two simple descriptors of the emoji are compared, one of NumPy and one of
# scikit-learn. You need `pip install "hap2s_jax[train,notebooks]"`.

# %%
import cv2
import numpy as np
from sklearn.decomposition import PCA

from hap2s_jax.data import emoji

data = emoji.load()
test = data.test
pictures = np.stack(
    [cv2.imdecode(np.frombuffer(test.read(i), np.uint8), cv2.IMREAD_COLOR) for i in range(len(test))]
)
labels, cameras = test.labels, test.cameras


def histogram(picture):
    """How often each of 64 colours occurs."""
    colours = (picture // 64).reshape(-1, 3) @ [16, 4, 1]
    return np.sqrt(np.bincount(colours, minlength=64) / len(colours))


histograms = np.stack([histogram(p) for p in pictures]).astype(np.float32)
grey = np.stack([cv2.resize(cv2.cvtColor(p, cv2.COLOR_BGR2GRAY), (16, 16)) for p in pictures]).reshape(
    len(pictures), -1
)
shapes = PCA(32, random_state=0).fit_transform(grey / 255).astype(np.float32)
print(histograms.shape, shapes.shape, len(np.unique(labels)), "classes")

# %% [markdown]
# ## All figures at once
#
# In `class` every image queries all others (CUB, Cars196, SOP). `query_gallery` leaves out what the query's own camera
# saw (Market-1501 and the like); the team that drew an emoji is its camera.

# %%
from hap2s_jax.evaluation import evaluate
from hap2s_jax.reporting.table import to_markdown

rows = {
    name: evaluate(embeddings, labels, cameras, protocols=("class", "query_gallery"))
    for name, embeddings in (("colours", histograms), ("shapes", shapes))
}
print(to_markdown(rows, columns=["recall@1", "recall@8", "map@r", "mAP", "rank-1", "nmi"]))
assert rows["shapes"]["recall@1"] > rows["colours"]["recall@1"]

# %% [markdown]
# ## Is the difference real?
#
# Intervals by the bootstrap, over whole classes: queries of one class are not independent.

# %%
from hap2s_jax.evaluation import protocols, retrieval, statistics

for name, embeddings in (("colours", histograms), ("shapes", shapes)):
    results = retrieval.rank_matches(embeddings, labels, cameras=cameras)
    values = protocols.query_gallery_values(results)
    intervals = statistics.confidence_intervals(values, groups=labels[results.query])
    print(name, {figure: np.round(intervals[figure], 3).tolist() for figure in ("mAP", "rank-1")})

# %% [markdown]
# ## Which queries fail, and what do they find instead?

# %%
hardest = results.query[statistics.worst(values["mAP"], 5)]
found = retrieval.nearest(shapes, labels, k=3, query=hardest)
for query, row in zip(hardest, found, strict=True):
    print(test.class_names[labels[query]], "->", [test.class_names[labels[i]] for i in row])

# %% [markdown]
# ## From the command line
#
# A file with `embeddings` and `labels` is enough.

# %%
import pathlib
import subprocess
import sys
import tempfile

with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "shapes.npz"
    np.savez(path, embeddings=shapes, labels=labels, cameras=cameras)
    command = [sys.executable, "-m", "hap2s_jax.evaluate", f"--embeddings={path}", "--no_cluster"]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

# %% [markdown]
# From PyTorch: `evaluate(model(images).detach().cpu().numpy(), labels.numpy())`. [Evaluation](../evaluation.md) defines
# every figure, and says which numbers of other libraries equal ours.
