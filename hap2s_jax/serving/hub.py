"""Trained encoders on the Hugging Face hub, ``hf://user/model``: fetching and pushing.

A model there is a small working directory: a config, one checkpoint with only the encoder's weights, and the threshold.
Nothing else is fetched, and it is trusted no more than any stranger's: no code, no pickle.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from hap2s_jax import extras
from hap2s_jax.data.regular_files import read_json
from hap2s_jax.errors import UserError, reason
from hap2s_jax.models.pretrained import HUB
from hap2s_jax.reporting import card
from hap2s_jax.run import config as configs
from hap2s_jax.run import foreign
from hap2s_jax.serving import calibration
from hap2s_jax.serving.trained import TrainedEncoder
from hap2s_jax.training.checkpoint import FOLDER, Checkpointer

_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
_TOLD = ("mAP", "rank-1", "recall@1")


class _Weights(NamedTuple):
    """The part of a training state that a checkpoint needs to be loaded."""

    step: np.int32
    params: Any
    batch_stats: Any
    ema_params: Any = None


def fetch(name: str) -> pathlib.Path:
    """The working directory that a model of the hub is, in huggingface_hub's cache.

    Raises:
      UserError: no such model, or it may not be seen, or it is neither reached nor in the cache.
    """
    model = _checked(name.removeprefix(HUB), f"{name!r} should read {HUB}user/model")
    library = extras.load(name, "huggingface_hub", "hub")
    wanted = [configs.FILE_NAME, calibration.FILE_NAME, f"{FOLDER}/**"]
    with _plainly(model):
        return pathlib.Path(library.snapshot_download(model, allow_patterns=wanted))


def check_login(name: str) -> None:
    """Raises a UserError unless `name` can be a model's and this machine has a token that the hub knows."""
    _checked(name, f"--push={name} should read user/model")
    library = extras.load("--push", "huggingface_hub", "hub")
    with _plainly(name):
        library.HfApi().whoami()


def push(encoder: TrainedEncoder, name: str, folder: pathlib.Path, *, private: bool = False) -> str:
    """Uploads an encoder with its run's model card.

    Args:
      encoder: the weights that its run's results are of.
      name: of the model, "user/model"; made if it is not there.
      folder: what else is to lie there; `write` has filled it.
      private: whether only its owner is to see a model that is made.

    Returns:
      The name to load it by.

    Raises:
      UserError: the hub refuses it, or is not reached.
    """
    library = extras.load("--push", "huggingface_hub", "hub")
    with _plainly(name):
        api = library.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        said = f"hap2s_jax: step {encoder.step}"
        # Files of an earlier push would be of another step.
        api.upload_folder(
            repo_id=name, folder_path=str(folder), commit_message=said, delete_patterns=f"{FOLDER}/**"
        )
    return HUB + name


def write(encoder: TrainedEncoder, name: str, folder: pathlib.Path) -> None:
    """Writes the files that `fetch` downloads into a folder, and the card as its README.md.

    No path of this machine is among it, and nothing of the training but what the card says.

    Raises:
      UserError: the run has no card, or one of other weights.
    """
    text, results = _card(encoder)
    config = foreign.without_places(encoder.config)
    configs.save(config, folder)
    variables = encoder.variables
    params = {"encoder": variables["params"]}
    checkpointer = Checkpointer(folder / FOLDER)
    checkpointer.save(_Weights(np.int32(encoder.step), params, variables["batch_stats"]))
    checkpointer.close()
    if calibration.read(encoder.workdir, encoder.fingerprint) is not None:
        shutil.copyfile(encoder.workdir / calibration.FILE_NAME, folder / calibration.FILE_NAME)
    # The card's own config would reveal local paths.
    shown = json.dumps(config.to_dict(), indent=2, default=list)
    text = re.sub(r"```json\n.*?\n```", lambda _: f"```json\n{shown}\n```", text, flags=re.DOTALL)
    text = text.replace("hap2s_jax.load(WORKDIR)", f'hap2s_jax.load("{HUB}{name}")')
    (folder / "README.md").write_text(
        f"---\n{_header(encoder, name, results)}\n---\n\n{text}", encoding="utf-8"
    )


def _card(encoder: TrainedEncoder) -> tuple[str, Mapping[str, Any]]:
    """The run's card, and its results, which must be of these weights."""
    path = encoder.workdir / card.FILE_NAME
    if not path.is_file():
        raise UserError(
            f"--push: {encoder.workdir} has no {card.FILE_NAME} yet; let the run end, which writes it"
        )
    results = read_json(encoder.workdir / "results.json")
    if results.get("weights_of_step") != encoder.step:
        raise UserError(
            f"--push: the card of {encoder.workdir} is of step {results.get('weights_of_step')}, and these are the "
            f"weights of step {encoder.step}; leave out --checkpoint"
        )
    return path.read_text(encoding="utf-8"), results


def _header(encoder: TrainedEncoder, name: str, results: Mapping[str, Any]) -> str:
    """The part of a README that the hub itself reads, as YAML."""
    library = extras.load("--push", "huggingface_hub", "hub")
    data = str(encoder.config.data.name)
    told = [
        library.EvalResult("image-retrieval", data, f"{data}, test classes", metric, round(float(value), 4))
        for metric, value in results.get("test", {}).items()
        if metric in _TOLD
    ]
    return library.ModelCardData(
        library_name="hap2s_jax",
        pipeline_tag="image-feature-extraction",
        tags=["metric-learning", "image-retrieval", "jax", "hap2s_jax"],
        model_name=name.split("/")[1],
        eval_results=told or None,
    ).to_yaml()


def _checked(name: str, otherwise: str) -> str:
    if not _NAME.fullmatch(name):
        raise UserError(otherwise)
    return name


@contextlib.contextmanager
def _plainly(name: str) -> Iterator[None]:
    """Turns an error of huggingface_hub into one line."""
    errors: Any = extras.load(name, "huggingface_hub.errors", "hub")
    log_in = "`hf auth login`, or a token in HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(f"{HUB}{name} is gated: ask for access on its page, then {log_in}") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no {HUB}{name}, or it is private and needs its owner's token: {log_in}"
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise UserError(f"{HUB}{name}: this machine has no token for the hub; {log_in}") from error
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise UserError(
            f"{HUB}{name} is not in this machine's cache, and the hub cannot be reached; check the network"
        ) from error
    except Exception as error:  # its HTTP client may raise anything
        status = getattr(getattr(error, "response", None), "status_code", None)
        denied = f"; this machine's token may not: {log_in}" if status in (401, 403) else ""
        raise UserError(f"{HUB}{name}: the hub says: {reason(error)}{denied}") from error
