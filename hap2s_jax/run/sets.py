"""Loads a config's data set: perhaps several to train on, and others to test on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hap2s_jax.data.fetching import DEFAULT, Cache
from hap2s_jax.data.places import local, place
from hap2s_jax.data.source import Dataset
from hap2s_jax.errors import UserError, unknown_name
from hap2s_jax.run.config import Config

_KEYS = ("name", "data_dir", "options")


class _Wanted(NamedTuple):
    """A data set that a config names."""

    name: str
    data_dir: str | None
    options: Mapping[str, Any]

    @property
    def place(self) -> tuple[str, str | None]:
        """Identifies a data set and its place, however they are spelt."""
        from hap2s_jax.data import registry

        folder = None if self.data_dir is None else os.path.realpath(local(self.data_dir))
        return registry.entry(self.name).name, folder

    def to_train_on(self, fraction: float, seed: int, cache: Cache) -> Dataset:
        from hap2s_jax.data import datasets

        if self.options.get("test_fraction") == 1:
            raise UserError("data.options.test_fraction: is 1, which leaves no class to train on")
        where = {"data_dir": self.data_dir, "validation_fraction": fraction, "seed": seed, "cache": cache}
        return datasets.load(self.name, **where, **self.options)

    def to_test_on(self, seed: int, cache: Cache = DEFAULT) -> Dataset:
        """The same data set, except that all images are for testing if they have no split."""
        from hap2s_jax.data import datasets, registry

        whole = {"test_fraction": 1.0} if registry.entry(self.name).is_own else {}
        where = {"data_dir": self.data_dir, "validation_fraction": 0.0, "seed": seed, "cache": cache}
        return datasets.load(self.name, **where, **{**whole, **self.options})


def load_dataset(config: Config) -> Dataset:
    """The data set that a config names, without its label noise or foreign images.

    Raises:
      UserError: naming the key that is wrong, or the data that are missing.
    """
    data, targets = config.data, _section(config.evaluate.get("on"), "evaluate.on", config.data.data_dir)
    sources = _sources(data)
    parts = _parts(data.get("parts", ("train",)), sources, targets)
    cache = cache_of(config)
    if len(sources) == 1 and not targets and parts == ("train",):
        return next(iter(sources.values())).to_train_on(data.validation_fraction, config.seed, cache)
    from hap2s_jax.data import several

    fraction, seed = data.validation_fraction, config.seed
    loaded = {
        name: _named(name, lambda w=w: w.to_train_on(fraction, seed, cache)) for name, w in sources.items()
    }
    tested = {name: _named(name, lambda w=w: w.to_test_on(seed, cache)) for name, w in targets.items()}
    return several.combine(loaded, tested or loaded, parts)


def _named(name: str, load: Callable[[], Dataset]) -> Dataset:
    """Calls `load`; adds the name of the data set to an error."""
    try:
        return load()
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def cache_of(config: Config) -> Cache:
    """Where packed images from a bucket are cached; the default for configs older than these keys."""
    keys = {"folder": "cache_dir", "gigabytes": "cache_gb"}
    return Cache(**{name: config.data[key] for name, key in keys.items() if key in config.data})


def target(text: str, seed: int) -> tuple[str, Dataset]:
    """A data set to test on, from NAME:DIR, a name, a folder or a CSV; and its name in tables.

    Raises:
      UserError: there is no such data set, or not there.
    """
    from hap2s_jax.data import registry

    name, colon, folder = text.partition(":")
    if place(text).exists():
        wanted = _Wanted("folder", text, {})
    elif colon and name.lower() in registry.known_names():
        wanted = _Wanted(name, folder, {})
    elif not colon and text.lower() in registry.known_names():
        wanted = _Wanted(text, None, {})
    else:
        raise UserError(
            f"--data: {text!r} is neither a folder or CSV here nor NAME:DIR of a known data set "
            f"({', '.join(registry.names())})"
        )
    return text if wanted.name == "folder" else name, wanted.to_test_on(seed)


def _sources(data: Config) -> dict[str, _Wanted]:
    if found := _section(data.get("sources"), "data.sources", data.data_dir):
        return found
    names = [name.strip() for name in data.name.split(",")]
    if len(names) == 1:
        return {data.name: _Wanted(data.name, data.data_dir, data.options)}
    if len(data.options):
        raise UserError(
            f"data.options: are of one data set, and data.name has {len(names)}; use data.sources"
        )
    return _distinct({name: _Wanted(name, data.data_dir, {}) for name in names}, "data.name", len(names))


def _section(section: Any, key: str, data_dir: str | None) -> dict[str, _Wanted]:
    """The sets of a section: name -> data_dir and options, and `name` if the set has another name."""
    found = {}
    for name, entry in (section or {}).items():
        if not hasattr(entry, "keys"):
            raise UserError(f"{key}.{name}: should be a section with data_dir and options, found {entry!r}")
        for part, what, fits in (
            ("name", "a name", isinstance(entry.get("name", ""), str)),
            ("data_dir", "a folder or file", _is_path(entry.get("data_dir") or "")),
            ("options", "a section", hasattr(entry.get("options") or {}, "keys")),
        ):
            if not fits:
                raise UserError(f"{key}.{name}.{part}: should be {what}, found {entry[part]!r}")
        if strange := sorted({*entry.keys()} - {*_KEYS}):
            raise unknown_name(f"key of {key}.{name}", strange[0], _KEYS)
        found[name] = _Wanted(
            entry.get("name", name), entry.get("data_dir", data_dir), entry.get("options") or {}
        )
    return _distinct(found, key, len(found))


def _is_path(given: Any) -> bool:
    return isinstance(given, str | os.PathLike) and "\0" not in os.fspath(given)


def _distinct(wanted: dict[str, _Wanted], key: str, count: int) -> dict[str, _Wanted]:
    from hap2s_jax.data import registry

    options = ({**registry.entry(w.name).options, **w.options} for w in wanted.values())
    seen = {(w.place, str(sorted(o.items()))) for w, o in zip(wanted.values(), options, strict=True)}
    if len(seen) < count:
        raise UserError(f"{key}: a data set is given twice in {', '.join(wanted)}")
    return wanted


def _parts(given: Any, sources: Mapping[str, _Wanted], targets: Mapping[str, _Wanted]) -> tuple[str, ...]:
    from hap2s_jax.data.several import PARTS

    parts = (given,) if isinstance(given, str) else tuple(dict.fromkeys(given))
    if not {"train"} <= {*parts} <= {*PARTS}:
        raise UserError(
            f"data.parts: must be train and, as wished, query and gallery; found {', '.join(parts)}"
        )
    own, tested = ({w.place for w in of.values()} for of in (sources, targets))
    if len(parts) > 1 and (not targets or own & tested):
        raise UserError(
            "data.parts: with queries or gallery to train on, test on other sets: name them in evaluate.on"
        )
    return parts
