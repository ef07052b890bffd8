"""What the commands share: flags whose mistakes are one line, and exit codes.

Exit codes: 0 done; 1 something the user can mend, said in one line; 2 a wrong flag; 75 asked to stop (SIGTERM), saved;
76 another process of the job is gone (`hap2s_jax.distributed.processes`); 130 interrupted.
"""

from __future__ import annotations

import logging as standard_logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from hap2s_jax.distributed.devices import expect_no_tpu
from hap2s_jax.errors import Preempted, UserError
from hap2s_jax.run import config as configs

EXIT_PREEMPTED = 75  # "try again later" of sysexits.h

# What parsing flags and reading a config file may raise; ml_collections lets its own errors through.
_FLAG_ERRORS = (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError)


def start(main: Callable[[], object]) -> None:
    """Parses the flags and calls `main`, turning what users do wrong into one line on standard error."""

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            fail(f"unknown argument {argv[1]!r}; options are written --name=value", code=2)
        # orbax logs whole tracebacks of failures that are reported here in one line.
        logging.set_verbosity(logging.FATAL)
        standard_logging.getLogger("hap2s_jax").setLevel(standard_logging.WARNING)
        try:
            main()
        except UserError as e:
            fail(str(e), code=1)
        except Preempted as e:
            print(e, file=sys.stderr, flush=True)
            raise SystemExit(EXIT_PREEMPTED) from None
        except KeyboardInterrupt:
            fail("interrupted; the same command goes on from the last checkpoint", code=130)

    expect_no_tpu()
    app.run(guarded, flags_parser=_parse)


def fail(message: str, code: int) -> NoReturn:
    """Prints one line and leaves."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def _parse(argv: Sequence[str]) -> list[str]:
    argv = list(argv)
    paths = _config_paths(argv)
    if len(paths) > 1:
        fail(f"--config is given {len(paths)} times; give one file, its argument after a colon", code=2)
    for path in paths:
        if not pathlib.Path(path).is_file():
            fail(f"config file {path} does not exist{_configs_nearby(path)}", code=2)
    try:
        return flags.FLAGS(argv)
    except _FLAG_ERRORS as e:
        fail(_explain(e, argv), code=2)


def _config_paths(argv: Sequence[str]) -> list[str]:
    paths = []
    for i, item in enumerate(argv):
        if match := re.fullmatch(r"--?config=([^:]*)(:.*)?", item):
            paths.append(match[1])
        elif item in ("-config", "--config") and i + 1 < len(argv):
            paths.append(argv[i + 1].partition(":")[0])
    return paths


def _configs_nearby(path: str) -> str:
    folder = pathlib.Path(path).parent
    found = sorted(str(f) for f in folder.glob("*.py")) if folder.is_dir() else []
    return f"; there are: {', '.join(found)}" if found else f" (the working directory is {os.getcwd()})"


def _explain(error: Exception, argv: Sequence[str]) -> str:
    text = str(error).strip()
    if "Error whilst parsing config file" in text:
        # A whole traceback in one message, of which the last line is the error itself.
        last = text.splitlines()[-1]
        if match := re.fullmatch(r"hap2s_jax\.errors\.UserError: (.*)", last):
            return match[1]
        lines = re.findall(r'File "([^"]+)", line (\d+)', text)
        where = f"{lines[-1][0]}:{lines[-1][1]}: " if lines else ""
        return f"the config file failed at {where}{last}"
    if unknown := _unknown_config_key(argv):
        return unknown
    return text.splitlines()[0] if text else type(error).__name__


def _unknown_config_key(argv: Sequence[str]) -> str | None:
    """The first override ``--config.KEY=...`` whose key the config lacks, explained."""
    keys = [m[1] for item in argv if (m := re.match(r"--?config\.([\w.]+)", item))]
    if not keys or "config" not in flags.FLAGS:
        return None
    without_overrides = [item for item in argv if not re.match(r"--?config\.", item)]
    sys.argv = without_overrides  # where config_flags looks for overrides, whatever it is asked to parse
    try:
        flags.FLAGS(without_overrides)
        config = flags.FLAGS["config"].value
        known = configs.flatten(config)
    except _FLAG_ERRORS:
        return None
    for key in keys:
        if key not in known and not any(k.startswith(key + ".") for k in known):
            return configs.nearest_key(config, key)
    return None
