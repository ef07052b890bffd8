"""The flags that subcommands of `python -m hap2s_jax.gallery` share, by name, as argparse takes them."""

from __future__ import annotations

from typing import Any

from hap2s_jax.catalogue.searching import PER
from hap2s_jax.reporting.outputs import OVERWRITE, Output
from hap2s_jax.serving import index

FLAGS: dict[str, dict[str, Any]] = {
    "images": {"required": True, "help": "a folder, or a CSV, .npz or .parquet file"},
    "columns": {"default": "", "help": "columns of a CSV file, as in label=identity,path=file"},
    "batch_size": {"type": int, "help": "images at a time; by default as in evaluation"},
    "image": {"nargs": "+", "action": "extend", "help": "paths or ids, as `list` shows them"},
    "where": {"default": "", "help": "a filter, as in \"camera = 'north' and time > '2026-05-01'\""},
    "label": {"default": "", "help": "the name of an individual"},
    "individual": {"nargs": "+", "action": "extend", "default": [], "help": "names of individuals"},
    "by": {"default": "", "help": "your name, for the log"},
    "k": {"type": int, "default": 20, "help": "largest number of results"},
    "query": {"nargs": "+", "action": "extend", "required": True, "help": "images"},
    "per": {"choices": PER, "default": "individual", "help": "one answer per individual, or per image"},
    "threshold": {"default": "auto", "help": "auto, none or the largest distance of a match"},
    "false_accepts": {"type": float, "metavar": "SHARE", "help": "largest share of false accepts, 0 to 1"},
    "index": {"choices": index.KINDS, "default": "auto", "help": "auto: exact below a million images"},
    "output": {"type": Output, "required": True, "help": "a .csv, .npz or .parquet file"},
    "test_fraction": {"type": float, "default": 0.25, "help": "share of individuals to test on"},
    "number": {"type": int, "help": "number of the decision; by default the newest"},
    "pictures": {"help": "folder that the images' paths are relative to now"},
    "host": {"default": "127.0.0.1", "help": "0.0.0.0: open to everyone who can reach this machine"},
    "port": {"type": int, "help": "by default the first free port from 7860 on"},
}

SWITCHES = {
    "train": "write a CSV for configs/folder.py, split by individual",
    "overwrite": OVERWRITE,
}
