"""Paths as other systems wrote them: backslashes, drives, and capitals, accents or encodings that differ here."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator


class Folder:
    """Files at any depth in a folder, found by the paths that another system has for them.

    Each folder on the disk is listed at most once, however many paths there are.

    Args:
      root: paths are relative to it, or absolute.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self._root = os.fspath(root)
        self._listed: dict[str, frozenset[str]] = {}
        self._alike: dict[str, dict[str, list[str]]] = {}
        self._folders: dict[str, str | None] = {}

    def find(self, path: str) -> str | None:
        """The path with forward slashes under which a file is there; None if there is none, or no single one."""
        return next(filter(None, map(self._here, _candidates(path))), None)

    def _here(self, path: str) -> str | None:
        head, name = posixpath.split(path)
        if not name or "\0" in path:
            return None
        if head not in self._folders:
            is_folder = os.path.isdir(os.path.join(self._root, head))
            self._folders[head] = head if is_folder else self._here(head.rstrip("/"))
        folder = self._folders[head]
        if folder is None:
            return None
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(os.listdir(os.path.join(self._root, folder)))
            except OSError:
                self._listed[folder] = frozenset()
        if name in self._listed[folder]:
            return posixpath.join(folder, name)
        if folder not in self._alike:
            alike = self._alike[folder] = {}
            for other in self._listed[folder]:
                alike.setdefault(_fold(other), []).append(other)
        found = self._alike[folder].get(_fold(name), [])
        return posixpath.join(folder, found[0]) if len(found) == 1 else None


def _candidates(path: str) -> Iterator[str]:
    """The path as it is, with forward slashes, and the ends of one that is absolute elsewhere, longest first."""
    yield path
    slashed = path.replace("\\", "/")
    if slashed.startswith("file://"):
        slashed = urllib.parse.unquote(slashed.removeprefix("file://"))
    yield slashed
    if re.match(r"([A-Za-z]:)?/", slashed):
        parts = [part for part in slashed.split("/") if part]
        yield from ("/".join(parts[n:]) for n in range(len(parts)))


def _fold(name: str) -> str:
    """The same text for names that differ in capitals, in how accents are composed, or in encoding."""
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:  # bytes of an older system that are no UTF-8
            name = os.fsencode(name).decode("cp1252", "surrogateescape")
        name = unicodedata.normalize("NFC", name)
    return name.casefold()
