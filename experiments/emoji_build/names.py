"""Steps 1 and 2 of the emoji build: which emoji an icon draws, and which class an emoji belongs to.

An emoji is known by its code points, written "1f468-200d-1f680" without variation selectors. Two of the icon
sets publish them; the names of the other four are looked up among the first two's names, then among Unicode's
own character names, then in the reviewed table `reviewed/names.csv`.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REVIEWED = Path(__file__).parent / "reviewed"

# In the order in which they name classes and in which drawings are preferred. Noto's two generations are one
# camera, because one team drew both.
CAMERA_OF_SET: dict[str, str] = {
    "noto": "google",
    "twemoji": "twitter",
    "fluent-emoji": "microsoft",
    "emojione": "emojione",
    "fxemoji": "mozilla",
    "noto-v1": "google",
}

ZWJ, FEMALE, MALE = "200d", "2640", "2642"
FACING_RIGHT = "27a1"
SKIN_TONES = frozenset({"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})
ADULTS = frozenset({"1f468", "1f469", "1f9d1"})
CHILDREN = frozenset({"1f466", "1f467", "1f9d2"})
FLAGS = frozenset({"1f3c1", "1f38c", "1f6a9", "1f3f4", "1f3f3", "fe82b"})
KEYCAP, KEYCAP_TEN = "20e3", "1f51f"
# Emoji that differ only by the gender of one person, though Unicode gave each a code point of its own.
GENDERED = {
    "1f468": "1f9d1",
    "1f469": "1f9d1",
    "1f466": "1f9d2",
    "1f467": "1f9d2",
    "1f474": "1f9d3",
    "1f475": "1f9d3",
    "1f934": "1fac5",
    "1f478": "1fac5",
    "1f936": "1f385",
    "1f9d1-200d-1f384": "1f385",
    "1fac3": "1f930",
    "1fac4": "1f930",
}
FAMILY, KISS, COUPLE, HOLDING_HANDS = "1f46a", "1f48f", "1f491", "1f9d1-200d-1f91d-200d-1f9d1"


@dataclass(frozen=True)
class IconSet:
    """One icon package: its drawings, and how its icons are named.

    Attributes:
      name: the package's name without scope.
      icons: name -> {"body", and where they differ from the set's default "width" and "height"}.
      aliases: name -> {"parent", and perhaps "hFlip", "vFlip", "rotate" (quarter turns)}.
      width, height: the default view box.
      characters: code points -> name, for the sets that publish them.
      version: the package's version.
    """

    name: str
    icons: Mapping[str, Mapping[str, Any]]
    aliases: Mapping[str, Mapping[str, Any]]
    width: float
    height: float
    characters: Mapping[str, str]
    version: str

    @classmethod
    def read(cls, packages: Path, name: str) -> IconSet:
        """Read the unpacked npm package `@iconify-json/name` under the folder `packages`."""
        folder = packages / "@iconify-json" / name
        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        return cls(
            name=name,
            icons=icons["icons"],
            aliases=icons.get("aliases", {}),
            width=icons.get("width", 16),
            height=icons.get("height", 16),
            characters=json.loads((folder / "chars.json").read_text(encoding="utf-8")),
            version=json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"],
        )

    def drawings(self) -> list[str]:
        """Names of icons and of those aliases that draw something new, without the withdrawn ones."""
        shown = [name for name, icon in self.icons.items() if not icon.get("hidden")]
        turned = [name for name, alias in self.aliases.items() if set(alias) - {"parent", "hidden"}]
        return sorted(shown + turned)

    def root(self, name: str) -> str:
        """The icon that an alias stands for, through any number of links."""
        while name not in self.icons:
            name = self.aliases[name]["parent"]
        return name


def normalise_code(code: str) -> str:
    """Drop the variation selector, which changes how an emoji is shown and not which it is."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def squeeze(name: str) -> str:
    """A name's letters and digits alone, so that "Man's Shoe", "mans-shoe" and "mansshoe" meet."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("&", "and"))


def base_code(code: str) -> str | None:
    """The code of the class that an emoji belongs to: one per gender or family base.

    Returns None for what the set leaves out: skin tones, flags, keycaps, and people "facing right", which are
    mirror images of another emoji.
    """
    parts = code.split("-")
    if SKIN_TONES & set(parts) or FLAGS & set(parts) or KEYCAP in parts or code == KEYCAP_TEN:
        return None
    if any("1f1e6" <= part <= "1f1ff" and len(part) == 5 for part in parts):
        return None
    if FACING_RIGHT in parts[1:]:
        return None
    people = [part for part in parts if part in ADULTS or part in CHILDREN]
    if len(people) > 1:
        if "1f91d" in parts:
            return HOLDING_HANDS
        if "2764" in parts:
            return KISS if "1f48b" in parts else COUPLE
        return FAMILY
    if code in {"1f46b", "1f46c", "1f46d"}:
        return HOLDING_HANDS
    # The first part stays: a gender sign may stand alone.
    parts = parts[:1] + [part for part in parts[1:] if part not in {FEMALE, MALE}]
    while parts and parts[-1] == ZWJ:
        parts.pop()
    if parts[0] in ADULTS and len(parts) > 1:
        parts[0] = "1f9d1"
    base = "-".join(parts)
    return GENDERED.get(base, base)


def read_table(name: str, folder: Path = REVIEWED) -> list[dict[str, str]]:
    """The rows of one of the reviewed tables."""
    with open(folder / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@dataclass
class NameTable:
    """Finds the code points of an icon by its set and name."""

    direct: dict[tuple[str, str], str] = field(default_factory=dict)
    reviewed: dict[tuple[str, str], str] = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)
    unicode: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    @classmethod
    def build(cls, sets: Mapping[str, IconSet], reviewed: list[dict[str, str]]) -> NameTable:
        """Gather the names that the sets publish, Unicode's, and the reviewed ones."""
        table = cls(reviewed={(row["set"], row["icon"]): row["code"] for row in reviewed})
        for icon_set in sets.values():
            code_of = {}
            for code, name in sorted(icon_set.characters.items()):
                code_of.setdefault(name, normalise_code(code))
            for name, code in code_of.items():
                table.direct[icon_set.name, name] = code
                table.published.setdefault(squeeze(name), code)
            for alias, link in icon_set.aliases.items():
                code = code_of.get(icon_set.root(alias))
                if code is not None and not set(link) - {"parent", "hidden"}:
                    table.aliases.setdefault(squeeze(alias), code)
        for code in set(table.published.values()):
            if "-" not in code:
                table.unicode[squeeze(unicodedata.name(chr(int(code, 16)), ""))] = code
        table.unicode.pop("", None)
        return table

    def code(self, set_name: str, icon: str) -> str | None:
        """The icon's code points, or None when nobody knows the name."""
        key = (set_name, icon)
        if key in self.reviewed:
            return self.reviewed[key] or None
        if key in self.direct:
            return self.direct[key]
        name = squeeze(icon)
        return self.published.get(name) or self.unicode.get(name) or self.aliases.get(name)
