"""Writes docs/config.md, the list of all config keys: `python docs/write_config_page.py`."""

import pathlib

from hap2s_jax.run.schema import Run
from hap2s_jax.settings import reference

TARGET = pathlib.Path(__file__).parent / "config.md"
HEAD = """# Every key of a config

Change any key on the command line, as in `--config.optimizer.learning_rate=1e-3`, or in a config file of your own. A
misspelt key, or a value of the wrong type or out of range, gives a one-line error that names the key.

`loss` and `auxiliary` take the hyperparameters of the loss that they name: see [losses](losses.md). An encoder of your
own takes the fields of its class: see [encoders](encoders.md#your-own-encoder).

This page is generated from the code.
"""


def page() -> str:
    """The page's text."""
    lines, shown = [HEAD], None
    keys = sorted(reference(Run), key=lambda key: "." in key[0])  # those without a section first
    for name, default, meaning in keys:
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
