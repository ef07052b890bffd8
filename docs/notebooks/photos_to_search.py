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
# # From a folder of photos to search with "no match"
#
# From a folder with a subfolder for each thing, train, embed and search, and learn when the gallery has no match. You
# need `pip install "hap2s_jax[train,notebooks]"`.
#
# The package includes drawings of emoji. Here they replace photos of 180 things, five or six of each. One of each is
# kept as a query, and 20 further things are in no folder at all.

# %%
import pathlib
import tempfile

from hap2s_jax.data import emoji

source = emoji.EmojiSource()
home = pathlib.Path(tempfile.mkdtemp())
known, unknown = [], []
for thing in range(200):
    pictures = [i for i in range(len(source)) if source.labels[i] == thing]
    for number, i in enumerate(pictures):
        folder = (
            home
            / ("queries" if number == 0 else "photos" if thing < 180 else "left_out")
            / source.class_names[thing]
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(source.read(i))
        if number == 0:
            (known if thing < 180 else unknown).append(folder / "0.png")
print(len(known), "known and", len(unknown), "unknown queries")

# %% [markdown]
# ## Look at the data
#
# Every command is also a function; in a terminal this is `hap2s check_data --name=folder --data_dir=photos`.

# %%
from hap2s_jax import check_data

check_data.main(["--name=folder", f"--data_dir={home / 'photos'}", f"--sheet={home / 'sheet.png'}"])

# %% [markdown]
# ## Train
#
# For real photos use published weights and larger images: `--config=configs/folder.py` alone. This encoder is tiny and
# trains for a minute on a CPU.

# %%
from configs import folder
from hap2s_jax.main import run

config = folder.get_config("tiny,scratch")
config.data.data_dir = str(home / "photos")
config.data.image_size = (32, 32)
config.data.validation_fraction = 0.3
config.data.options.test_fraction = 0.2
config.encoder.update(
    name="resnet10", width=16, stem="small32", pooling="grid2", embedding_bn=True, normalize=True
)
config.augment.flip = False
config.batch.update(classes=16, images_per_class=4)
config.steps = 150
config.optimizer.update(name="adamw", learning_rate=0.01)
config.schedule.warmup_steps = 20
config.evaluate.update(every_steps=75, weights="last")
config.checkpoint.every_steps = 75
config.log.tensorboard = False
results = run(config, home / "run")
assert results["test"]["map@r"] > results["untrained"]["map@r"]

# %% [markdown]
# ## Embed the folder

# %%
from hap2s_jax import embed

gallery = home / "gallery.npz"
embed.main([f"--workdir={home / 'run'}", f"--images={home / 'photos'}", f"--output={gallery}"])

# %% [markdown]
# ## Search
#
# Training has measured on the validation classes how near true and wrong matches are. The threshold between them
# decides what counts as found; `--false_accepts=0.01` would be stricter.

# %%
import json

from hap2s_jax import search

shown = [str(path) for path in known[:3] + unknown[:3]]
search.main([f"--gallery={gallery}", "--k=3", f"--picture={home / 'found.png'}", "--query", *shown])

# %%
from IPython.display import Image

Image(filename=str(home / "found.png"))

# %% [markdown]
# ## How often is it right?


# %%
def answers(queries):
    found = home / "found.json"
    search.main(
        [f"--gallery={gallery}", "--k=1", f"--json={found}", "--overwrite", "--query", *map(str, queries)]
    )
    return json.loads(found.read_text())


import contextlib
import io

with contextlib.redirect_stdout(io.StringIO()):  # a line for each query would be long
    of_known, of_unknown = answers(known), answers(unknown)
right = [a["match"] and a["hits"][0]["label"] == pathlib.Path(a["query"]).parent.name for a in of_known]
refused = [not a["match"] for a in of_unknown]
print(f"known: {sum(right)} of {len(right)} found; unknown: {sum(refused)} of {len(refused)} refused")
assert any(right)

# %% [markdown]
# After so little training the first answer is rarely right; a better encoder raises both shares.
# [Use](../use.md#search) says what the threshold promises. To search in a browser, run
# `hap2s demo --gallery=gallery.npz`.
