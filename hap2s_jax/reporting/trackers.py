"""Sends a run to Weights & Biases and MLflow with their libraries: numbers, config, pictures and model card.

Their own environment variables, such as ``WANDB_MODE=offline`` and ``MLFLOW_TRACKING_URI``, decide where things go and
when. Neither can stop a run: a failure to send is reported once, and the log on the disk has everything.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hap2s_jax import extras
from hap2s_jax.data.regular_files import read_json
from hap2s_jax.errors import UserError, reason
from hap2s_jax.reporting.atomic import replacing

FILE_NAME = "trackers.json"  # service -> [project, id], so that a resumed run goes on there
_BATCH = 100  # parameters in one request to MLflow


class Tracker:
    """One service. Subclasses define `_log`, `_attach` and `_close`; their errors end the sending, not the run."""

    service = ""

    def __init__(self) -> None:
        self._sending = True

    def write(self, record: Mapping[str, float], wall_time: float) -> None:
        """Sends the record's numbers at its "step"; `wall_time` in seconds since 1970."""
        self._try(self._log, record, wall_time)

    def attach(self, paths: Iterable[Path], step: int) -> None:
        """Sends files; pictures are shown at `step` too, where the service can."""
        self._try(self._attach, list(paths), step)

    def close(self, failed: bool = False) -> None:
        """Sends what is left and ends the run there, as failed or as finished."""
        self._try(self._close, failed)

    def _try(self, send: Any, *arguments: Any) -> None:
        if not self._sending:
            return
        try:
            send(*arguments)
        except Exception as error:  # from a network, a server or another library
            self._sending = False
            print(
                f"warning: logging to {self.service} has stopped ({reason(error)}); metrics.jsonl has it all",
                file=sys.stderr,
            )

    def _log(self, record: Mapping[str, float], wall_time: float) -> None:
        raise NotImplementedError

    def _attach(self, paths: list[Path], step: int) -> None:
        raise NotImplementedError

    def _close(self, failed: bool) -> None:
        raise NotImplementedError


class Wandb(Tracker):
    """A run of Weights & Biases; its own files lie in `workdir`/wandb."""

    service = "wandb"

    def __init__(self, project: str, config: Mapping[str, Any], workdir: Path, known: str | None) -> None:
        super().__init__()
        self._wandb = extras.load("config.log.wandb", "wandb", "wandb")
        self._workdir = workdir
        self._run = self._wandb.init(
            project=project,
            id=known,
            resume="allow",
            name=config["name"],
            config=dict(config),
            dir=str(workdir),
            # Otherwise wandb redirects the terminal that the progress bar writes to.
            settings=self._wandb.Settings(console="off"),
        )
        self.id: str = self._run.id

    def _log(self, record: Mapping[str, float], wall_time: float) -> None:
        del wall_time
        self._run.log({k: v for k, v in record.items() if k != "step"}, step=int(record["step"]))

    def _attach(self, paths: list[Path], step: int) -> None:
        pictures = [path for path in paths if path.suffix == ".png"]
        self._run.log({path.stem: self._wandb.Image(str(path)) for path in pictures}, step=step)
        for path in paths:
            self._run.save(str(path), base_path=str(self._workdir), policy="now")

    def _close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Mlflow(Tracker):
    """A run of MLflow, of the experiment `project`."""

    service = "mlflow"

    def __init__(self, project: str, config: Mapping[str, Any], workdir: Path, known: str | None) -> None:
        super().__init__()
        del workdir
        self._mlflow = extras.load("config.log.mlflow", "mlflow", "mlflow")
        self._client = self._mlflow.MlflowClient()
        if known is not None:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(project)
        self.id: str = self._client.create_run(number, run_name=config["name"]).info.run_id
        # MLflow writes a parameter only once; changes of a resumed run are in its config.json.
        parameters = [self._mlflow.entities.Param(*pair) for pair in _flat(config)]
        for first in range(0, len(parameters), _BATCH):
            self._client.log_batch(self.id, params=parameters[first : first + _BATCH])

    def _log(self, record: Mapping[str, float], wall_time: float) -> None:
        moment, step = int(1000 * wall_time), int(record["step"])
        # MLflow allows no "@" in names: recall@1 becomes recall_at_1.
        metrics = [
            self._mlflow.entities.Metric(name.replace("@", "_at_"), float(value), moment, step)
            for name, value in record.items()
            if name != "step"
        ]
        self._client.log_batch(self.id, metrics=metrics)

    def _attach(self, paths: list[Path], step: int) -> None:
        del step
        for path in paths:
            self._client.log_artifact(self.id, str(path))

    def _close(self, failed: bool) -> None:
        self._client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


_SERVICES: dict[str, type[Any]] = {"wandb": Wandb, "mlflow": Mlflow}


def opened(config: Mapping[str, Any], workdir: Path, *, resumed: bool) -> Iterator[Tracker]:
    """The services that ``config["log"]`` names, one by one, each at a new run or at the one that `workdir` knows.

    Raises:
      UserError: a service is not installed, or cannot be had; in one line.
    """
    asked = {name: config["log"][name] for name in _SERVICES if config["log"][name]}
    if not asked:
        return
    path = workdir / FILE_NAME
    known = _known(path) if resumed else {}
    for name, project in asked.items():
        before, identity = known.get(name, (None, None))
        try:
            tracker = _SERVICES[name](project, config, workdir, identity if before == project else None)
        except UserError:
            raise
        except Exception as error:  # no account, no network, no such run any more
            raise UserError(
                f"config.log.{name}: no run could be opened ({reason(error)}); {_REMEDIES[name]}, or leave it out"
            ) from error
        yield tracker
        known[name] = [project, tracker.id]
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(known) + "\n")


def _known(path: Path) -> dict[str, list[str]]:
    try:
        record = read_json(path)
    except (OSError, ValueError):
        return {}
    pairs = record.items() if isinstance(record, dict) else ()
    return {name: pair for name, pair in pairs if isinstance(pair, list) and len(pair) == 2}


_REMEDIES = {
    "wandb": "log in with `wandb login`, set WANDB_MODE=offline",
    "mlflow": "set MLFLOW_TRACKING_URI to a server that answers, or to a file such as sqlite:///mlflow.db",
}


def _flat(config: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """(dotted name, text) of every value of a config."""
    pairs = []
    for key, value in config.items():
        inner = isinstance(value, Mapping)
        pairs += _flat(value, f"{above}{key}.") if inner else [(f"{above}{key}", str(value))]
    return pairs
