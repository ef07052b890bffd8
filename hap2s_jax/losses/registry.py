"""Losses by name, for configs: `create("hap2s_p", alpha=10.0)` is a function of embeddings and labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Unpack, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hap2s_jax.errors import UserError, did_you_mean
from hap2s_jax.losses.rows import EngineCall, Result, SampleCall, Stats

# Arguments of how a loss is computed: the training step sets them, not a config.
_CALL = {"params", "key", *EngineCall.__annotations__}

InitParams = Callable[..., Any]  # returns a tree of arrays


@dataclass(frozen=True)
class _Entry:
    function: Callable[..., Result]
    init_params: InitParams | None
    like: Callable[..., Result] | None
    rate: float
    fixed: dict[str, Any]  # of any argument's type

    @property
    def is_ours(self) -> bool:
        """Whether the function is of this package."""
        return self.function.__module__.startswith("hap2s_jax.")

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The function's parameters, after those of the function that it passes its other arguments to."""
        own = inspect.signature(self.function).parameters
        handed = {} if self.like is None else inspect.signature(self.like).parameters
        return {**own, **{name: p for name, p in handed.items() if name not in own}}


_ENTRIES: dict[str, _Entry] = {}


@dataclass(frozen=True, eq=False)  # so that `jax.jit` takes it: hyperparameters have no hash
class Loss:
    """A loss with its hyperparameters, made by `create`.

    Attributes:
        name: its name in the registry.
        hyperparameters: all of them, defaults included.
    """

    name: str
    hyperparameters: dict[str, Any]  # of any argument's type
    _entry: _Entry = field(repr=False)

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload] - a bool may be either
        self,
        embeddings: ArrayLike,
        labels: ArrayLike,
        *,
        with_stats: Literal[True],
        **arguments: Any,  # of any argument's type
    ) -> tuple[jax.Array, Stats]: ...
    @overload
    def __call__(
        self,
        embeddings: ArrayLike,
        labels: ArrayLike,
        *,
        with_stats: bool = False,
        **arguments: Any,  # of any argument's type
    ) -> jax.Array: ...

    def __call__(
        self, embeddings: ArrayLike, labels: ArrayLike, *, with_stats: bool = False, **arguments: Any
    ) -> Result:  # of any argument's type
        """The loss of embeddings `[n, d]` under labels `[n]`: its value, or `(value, stats)`.

        Args:
            embeddings: `[n, d]`.
            labels: `[n]`.
            with_stats: also return a dict of float32 scalars.
            **arguments: `axis_name`, `params` (None for a loss that has none), and the engine's other arguments; a
                hyperparameter given here overrides the configured one and may be traced.
        """
        if not self.has_params and arguments.get("params") is None:
            arguments.pop("params", None)  # what `init_params` gives for it
        settings = self._entry.fixed | self.hyperparameters | arguments
        return self._entry.function(embeddings, labels, with_stats=with_stats, **settings)

    @property
    def has_params(self) -> bool:
        """Whether the loss has arrays to learn and must be called with `params=`."""
        return self._entry.init_params is not None

    @property
    def rate(self) -> float:
        """Factor of these arrays' learning rate, relative to the encoder's head, as in the loss's paper."""
        return self._entry.rate

    @property
    def needs_pairs(self) -> bool:
        """Whether a batch needs two classes and two images of each; False for users' losses, where it is unknown."""
        # A loss without blocks learns points of the classes and needs no other image of the batch.
        to_points = self.has_params and not self.has_blocks
        return not to_points and self._entry.is_ours

    @property
    def draws(self) -> bool:
        """Whether the loss draws at random, from `key=`."""
        return "key" in self._entry.parameters

    @property
    def has_blocks(self) -> bool:
        """Whether the loss can be computed a block at a time, with `block_size=`."""
        # A loss passes keyword arguments that it does not name on to the engine, unless it says that it takes fewer.
        fewer = (Unpack[SampleCall], "Unpack[SampleCall]")  # as it is, or where annotations are not evaluated
        return any(
            p.name == "block_size" or (p.kind is p.VAR_KEYWORD and p.annotation not in fewer)
            for p in self._entry.parameters.values()
        )

    def check(self) -> None:
        """Raises ValueError for values that the loss refuses, without computing anything.

        Losses of others are not tried: they may want batches of a certain form.
        """
        if not self._entry.is_ours:
            return

        def call(key: jax.Array, embeddings: jax.Array, labels: jax.Array) -> jax.Array:
            return self(embeddings, labels, with_stats=False, params=self.init_params(key, 2, 2))

        jax.eval_shape(call, jax.random.key(0), jnp.zeros((2, 2)), jnp.zeros(2, int))

    def init_params(self, key: jax.Array, num_classes: int, embedding_dim: int) -> Any:  # a tree of arrays
        """The loss's own learnable arrays (a pytree), or None if it has none.

        Args:
            key: random key.
            num_classes: labels are 0 to `num_classes` - 1.
            embedding_dim: width of the embeddings.
        """
        make = self._entry.init_params
        if make is None:
            return None
        known = inspect.signature(make).parameters
        shape = {name: value for name, value in self.hyperparameters.items() if name in known}
        return make(key, num_classes, embedding_dim, **shape)


def register(
    name: str,
    function: Callable[..., Result],
    *,
    init_params: InitParams | None = None,
    like: Callable[..., Result] | None = None,
    rate: float = 1.0,
    **fixed: Any,  # of any argument's type
) -> None:
    """Adds a loss; its keyword-only arguments with plain defaults become its hyperparameters.

    Args:
        name: how configs call it.
        function: `(embeddings, labels, *, hyperparameters..., axis_name, with_stats, ...)`.
        init_params: `(key, num_classes, embedding_dim) -> pytree` if the function takes `params`; it is also given
            those hyperparameters that it names.
        like: the function to which it hands what it takes by `**arguments`; that one's hyperparameters are its too.
        rate: learning rate of those arrays over that of the encoder's head.
        **fixed: arguments that this name sets once and for all.

    Raises:
        ValueError: the name is that of a loss of this package. A loss of your own may be registered again.
    """
    entry = _Entry(function, init_params, like, rate, fixed)
    if name in _ENTRIES and _ENTRIES[name].is_ours and not entry.is_ours:
        raise ValueError(f"{name!r} is a loss of hap2s_jax; register yours by another name")
    _ENTRIES[name] = entry


def names() -> tuple[str, ...]:
    """Names of all losses, sorted."""
    return tuple(sorted(_ENTRIES))


def hyperparameters(name: str) -> dict[str, str | float | bool]:
    """Default hyperparameters of the loss called `name`.

    Raises:
        UserError: unknown name.
    """
    entry = _entry(name)
    defaults = {
        key: parameter.default
        for key, parameter in entry.parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in _CALL
    }
    return {k: v for k, v in defaults.items() if isinstance(v, str | int | float) and k not in entry.fixed}


def create(name: str, **overrides: Any) -> Loss:  # of any argument's type
    """Makes the loss called `name`, with hyperparameters in place of its defaults.

    Raises:
        UserError: unknown name or hyperparameter (the nearest right one is suggested), or one of the wrong
            type.
    """
    settings = hyperparameters(name)
    for key, value in overrides.items():
        if key not in settings:
            raise UserError(
                f"loss {name!r} has no hyperparameter {key!r}{did_you_mean(key, settings, cutoff=0.5)}; "
                f"it has {', '.join(settings)}. A config takes another loss as FILE.py:loss={name}"
            )
        settings[key] = _converted(f"loss {name!r}: {key}", value, settings[key])
    return Loss(name, settings, _entry(name))


def _entry(name: str) -> _Entry:
    if name not in _ENTRIES:
        raise UserError(
            f"unknown loss {name!r}{did_you_mean(name, _ENTRIES, cutoff=0.5)}; known are {', '.join(names())}"
        )
    return _ENTRIES[name]


def _converted(what: str, value: Any, default: Any) -> Any:  # of any argument's type
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, type(default)) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise UserError(f"{what} is {value!r}; it should be a {type(default).__name__}, such as {default!r}")
    return value
