"""Brings pages from outside docs/ into the site, mends their links, and checks that the reference is whole."""

from __future__ import annotations

import importlib
import pathlib
import posixpath
import re
import zlib
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[2]
# What stands elsewhere in the repository -> where it stands in the site.
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/README.md": "experiments.md",
}
# Everything public in these must be in the reference.
PUBLIC = ("hap2s_jax", "hap2s_jax.losses", "hap2s_jax.models", "hap2s_jax.evaluation")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages from elsewhere."""
    for source, page in MOVED.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Points the links of a page to the site; one to a file that is only in the repository keeps its text alone."""
    del others
    here = page.file.src_uri
    if not here.endswith(".md"):
        return markdown
    source = next((old for old, new in MOVED.items() if new == here), f"docs/{here}")

    def moved(link: re.Match[str]) -> str:
        picture, text, target, anchor = link.groups(default="")
        if not target or "://" in target or target.startswith("mailto:"):
            return link[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        there = MOVED.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else None)
        if there is not None:
            return f"{picture}[{text}]({posixpath.relpath(there, posixpath.dirname(here) or '.')}{anchor})"
        return text if (ROOT / place).exists() else link[0]  # what is not there is left for mkdocs to refuse

    return _LINK.sub(moved, markdown)


def on_post_build(config: Any) -> None:
    """Refuses a site whose reference lacks a public name."""
    content = (pathlib.Path(config["site_dir"]) / "objects.inv").read_bytes()
    known = set(zlib.decompress(content.split(b"\n", 4)[4]).decode().split())
    missing = [
        f"{module}.{name}"
        for module in PUBLIC
        for name in importlib.import_module(module).__all__
        if f"{module}.{name}" not in known
    ]
    if missing:
        raise PluginError(f"not in the reference: {', '.join(missing)}")
