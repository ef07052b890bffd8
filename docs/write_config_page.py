"""Writes docs/config.md, the list of all config keys: `python docs/write_config_page.py`."""

import pathlib

from hap2s_jax.run.schema import Run
from hap2s_jax.settings import reference

TARGET = pathlib.Path(__file__).parent / "config.md"
HEAD = """# Every key of a config

Change any key on the command line, as in `--config.optimizer.learning_rate=1e-3`, or in a config file of your own. A
misspelt key, a value of the wrong type or out of range ends the command with one line that names the key.

The hyperparameters of `loss` and `auxiliary` are those of the loss that they name: see [losses](losses.md). An encoder
of your own takes the options of its class: see [encoders](encoders.md).

This page is generated from the code.
"""


def page() -> str:
    """The page's text."""
    lines, shown = [HEAD], None
    for name, default, meaning in reference(Run):
        section = name.rpartition(".")[0]
        if section != shown:
            shown = section
            title = f"`{section}`" if section else "The run"
            lines.append(f"## {title}\n\n| key | default | meaning |\n|---|---|---|")
        following = f"| `{name}` | `{default!r}` | {meaning} |"
        lines.append(following)
    return "\n".join(lines).replace("|\n## ", "|\n\n## ") + "\n"


if __name__ == "__main__":
    TARGET.write_text(page())
