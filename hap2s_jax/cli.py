"""Shared by all commands: flags, mistakes in one line, exit codes.

Exit codes: 0 done; 1 a mistake of the user's, in one line; 2 a wrong flag; 75 asked to stop (SIGTERM), saved, or a
bucket does not answer; 76 another process of the job is gone (`hap2s_jax.distributed.processes`); 130 interrupted;
143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

# Set before anything can load TensorFlow or XLA: they would print log lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from hap2s_jax.data import bucket
from hap2s_jax.distributed import signals
from hap2s_jax.distributed.devices import expect_no_tpu
from hap2s_jax.errors import Preempted, Unreachable, UserError, did_you_mean, reason, shown

EXIT_PREEMPTED = 75  # "try again later" of sysexits.h
EXIT_TERMINATED = signals.CODES[signal.SIGTERM]


class UsageError(UserError):
    """A wrong flag, found only after the flags were parsed."""


class Parser(argparse.ArgumentParser):
    """The flags of one command.

    As in argparse, but a mistake is one line, a flag's name may have dashes for underscores, and arguments that
    begin with ``--config`` are kept apart in `options.config`, for `hap2s_jax.run.config_file.read`.

    Args:
      command: the name of its module in this package.
      description: the module's docstring.
    """

    def __init__(self, command: str, description: str | None):
        super().__init__(
            prog=f"python -m hap2s_jax.{command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.register("type", int, _whole_number)
        self.register("type", float, _number)

    def add_config(self, example: str) -> None:
        """Adds ``--config``, and with it ``--config.KEY=VALUE``."""
        self.add_argument(
            "--config",
            metavar="FILE[:ARGUMENT]",
            help=f"the experiment: a file, or the name of one that comes with the package, as {example}",
        )
        self.add_argument(
            "--config.KEY", dest="config", metavar="VALUE", help="change the value of a config key"
        )

    def add_switch(self, name: str, *, default: bool | None, help: str) -> None:
        """Adds ``--name`` and ``--no_name``, also written ``--name=true`` and ``--name=false``."""
        self.add_argument(f"--{name}", action=_Switch, default=default, help=help)

    def add_data_set(self) -> None:
        """Adds the flags that say where a data set lies, and what it is read with."""
        self.add_argument(
            "--data_dir", help="folder of the data sets; for --name=folder, the folder or CSV itself"
        )
        self.add_argument(
            "--option",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="option of the data set; may be repeated",
        )

    def add_strict(self) -> None:
        """Adds ``--strict``, of commands that read checkpoints."""
        self.add_switch(
            "strict",
            default=False,
            help="stop at a damaged checkpoint; by default the newest whole one is used",
        )

    def read(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The options that `arguments` give, by default those of the command line."""
        given = sys.argv[1:] if arguments is None else list(arguments)
        config, own = _split(given) if self._takes_config() else ([], given)
        options, left = self.parse_known_args([self._normal(item) for item in own])
        if left:
            if left[0].startswith("-"):
                self.error(
                    f"unknown flag {left[0]}{did_you_mean(left[0].partition('=')[0], self._flags())}; --help lists all"
                )
            self.error(f"unknown argument {left[0]!r}; options are written --name=value")
        if self._takes_config():
            options.config = config
        return options

    def error(self, message: str) -> NoReturn:
        """Prints one line and leaves with 2."""
        raise SystemExit(_said(message.removeprefix("argument "), 2))

    def _flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    def _takes_config(self) -> bool:
        return "--config" in self._flags()

    def _normal(self, item: str) -> str:
        """Underscores for dashes in a flag's name, and a switch's value as a part of it."""
        match = re.fullmatch(r"--([a-zA-Z][\w-]*)(?:=(.*))?", item, re.DOTALL)
        if not match:
            return item
        name, value = match[1].replace("-", "_"), match[2]
        if value is None:
            return f"--{name}"
        if value.lower() in ("true", "false") and f"--no_{name}" in self._flags():
            return f"--{name}" if value.lower() == "true" else f"--no_{name}"
        return f"--{name}={value}"


class _Switch(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any):
        (flag,) = option_strings
        super().__init__([flag, f"--no_{flag[2:]}"], dest, nargs=0, **settings)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: Any = None,
    ) -> None:
        setattr(namespace, self.dest, option_string == self.option_strings[0])


def _whole_number(text: str) -> int:
    with contextlib.suppress(ValueError):
        if abs(number := int(text)) < 2**63:
            return number
    raise argparse.ArgumentTypeError(f"{text!r} should be a whole number")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} should be a number") from None


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into those about the config, and the rest."""
    config: list[str] = []
    rest: list[str] = []
    wants_value = False
    for item in arguments:
        if match := re.fullmatch(r"-?-(no)?config([.].*?)?(=.*)?", item, re.DOTALL):
            config.append(item)
            wants_value = match[3] is None
        else:
            (config if wants_value and not item.startswith("--") else rest).append(item)
            wants_value = False
    return config, rest


def start(
    work: Callable[[argparse.Namespace], object],
    parser: Parser,
    arguments: Sequence[str] | None = None,
    *,
    interrupted: str = "interrupted",
) -> int:
    """Reads the flags and does the work; see `ended`.

    Args:
      work: gets the options.
      parser: of the command.
      arguments: by default those of the command line.
      interrupted: what to say after SIGINT.

    Returns:
      The exit code.
    """
    # Pillow's, about images: our own messages say what matters.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    expect_no_tpu()
    return ended(lambda: work(parser.read(arguments)), interrupted)


class _Outliving(io.FileIO):
    """An output whose reader may go away, such as `head`: what follows is dropped, and the work goes on."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def _outlive_readers() -> None:
    """Lets both outputs of this process outlive their readers, and print file names whose bytes are not text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
            continue  # a test's, a notebook's, or done already
        stream.flush()
        raw = _Outliving(stream.fileno(), "w", closefd=False)
        outliving = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, outliving)


def ended(work: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Does the work; a user's mistake becomes one line on standard error.

    Exit codes are decided here and nowhere else.
    """
    _outlive_readers()
    signals.working(interrupted)
    try:
        work()
        sys.stdout.flush()
        if failed := bucket.failed():
            print(f"note: {failed:,} requests to a bucket failed, and were sent again", file=sys.stderr)
    except UsageError as error:
        return _said(error, 2)
    except (UserError, OSError) as error:
        return _said(error, 1)
    except MemoryError as error:
        return _said(
            f"this machine has too little memory: {reason(error)}; smaller batches or images may do", 1
        )
    except Unreachable as error:
        code = _said(error, EXIT_PREEMPTED)
        # A thread that saves checkpoints may go on trying for a long time.
        signals.leave(code, anyway=signals.IS_COMMAND)
        return code
    except Preempted as error:
        print(error, file=sys.stderr, flush=True)
        return EXIT_PREEMPTED if error.step else EXIT_TERMINATED
    except KeyboardInterrupt:
        code = signals.notice()
        signals.say(interrupted)
        signals.leave(code)
        return code
    finally:
        signals.working(None)
    return 0


def _said(message: object, code: int) -> int:
    print(f"error: {shown(str(message))}", file=sys.stderr, flush=True)
    return code
