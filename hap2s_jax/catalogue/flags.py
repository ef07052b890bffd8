"""The flags that subcommands of `python -m hap2s_jax.gallery` share, by name, as argparse takes them."""

from __future__ import annotations

from typing import Any

from hap2s_jax.catalogue.searching import PER
from hap2s_jax.serving import index

FLAGS: dict[str, dict[str, Any]] = {
    "images": {"required": True, "help": "a folder, or a CSV, .npz or .parquet file"},
    "columns": {"default": "", "help": "of a CSV file, as in label=identity,path=file"},
    "batch_size": {"type": int, "help": "images at a time; by default as the run evaluated"},
    "image": {"nargs": "+", "action": "extend", "help": "paths or ids, as `list` shows them"},
    "where": {"default": "", "help": "a filter, as in \"camera = 'north' and time > '2026-05-01'\""},
    "label": {"default": "", "help": "the name of an individual"},
    "individual": {"nargs": "+", "action": "extend", "default": [], "help": "names"},
    "by": {"default": "", "help": "who decides"},
    "k": {"type": int, "default": 20, "help": "how many at most"},
    "query": {"nargs": "+", "action": "extend", "required": True, "help": "images"},
    "per": {"choices": PER, "default": "individual", "help": "one answer for each of these"},
    "threshold": {"default": "auto", "help": "auto, none or a distance"},
    "false_accepts": {"type": float, "metavar": "SHARE", "help": "largest share of false accepts, 0 to 1"},
    "index": {"choices": index.KINDS, "default": "auto", "help": "how to search"},
    "output": {"required": True, "help": "a .csv, .npz or .parquet file"},
    "test_fraction": {"type": float, "default": 0.25, "help": "of individuals, with --train"},
    "number": {"type": int, "help": "of the decision; by default the newest"},
    "pictures": {"help": "the folder to which the images' paths are relative now"},
    "host": {"default": "127.0.0.1", "help": "0.0.0.0 lets in everyone who can reach this machine"},
    "port": {"type": int, "help": "by default the first free one from 7860 on"},
}
