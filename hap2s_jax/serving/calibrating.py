"""The flags of `python -m hap2s_jax.search` about thresholds: which one holds, and --calibrate."""

from __future__ import annotations

import argparse
import math
import pathlib

from hap2s_jax import extras
from hap2s_jax.errors import UserError, require, shown
from hap2s_jax.evaluation.thresholds import ErrorRates
from hap2s_jax.reporting.atomic import replacing
from hap2s_jax.serving import calibration, commands, joined, seen, vectors
from hap2s_jax.serving.trained import TrainedEncoder


def open_gallery(options: argparse.Namespace) -> vectors.Vectors:
    """Reads the file of embeddings; its checkpoint becomes the flags' default."""
    gallery = joined.read(options.gallery)
    if missing := sorted({"step", "average", "workdir"} - gallery.model.keys()):
        raise UserError(
            f"{options.gallery} does not say of which encoder it is ({missing[0]} is missing); embed the images again"
        )
    if options.checkpoint is None and options.average is None:
        options.checkpoint, options.average = gallery.model["step"], gallery.model["average"]
    return gallery


def check_weights(gallery: vectors.Vectors, encoder: TrainedEncoder) -> None:
    """Raises UserError if the gallery was embedded with other weights."""
    if gallery.model.get("fingerprint") != encoder.fingerprint:
        raise UserError(
            f"the gallery was embedded with other weights (step {gallery.model.get('step')} of "
            f"{gallery.model.get('workdir')}) than those of step {encoder.step} of {encoder.workdir}; embed it "
            "again, or give the --workdir and --checkpoint that it was made with"
        )


def choose_threshold(
    workdir: pathlib.Path, fingerprint: str, wanted: str = "auto", false_accepts: float | None = None
) -> tuple[float | None, str]:
    """The threshold for an encoder, and in words where it comes from.

    Args:
      workdir: the encoder's working directory, which may hold a calibration.
      fingerprint: of the encoder's weights, see `TrainedEncoder`.
      wanted: "auto" takes the calibration if there is one, "none" does without, a number is taken as it is.
      false_accepts: the share that is tolerated; by default the threshold of equal errors.

    Raises:
      UserError: a share or number that makes no sense, or a share without calibration.
    """
    if false_accepts is not None and wanted != "auto":
        raise UserError(f"--false_accepts chooses a threshold; leave it out beside --threshold={wanted}")
    if wanted == "none":
        return None, "no threshold"
    if wanted != "auto":
        try:
            given = float(wanted)
        except ValueError:
            given = math.nan
        require(given >= 0, "--threshold", repr(wanted), "auto, none or a distance")
        return given, "threshold as given"
    rates = calibration.read(workdir, fingerprint)
    if rates is None:
        if false_accepts is not None:
            raise UserError(
                f"--false_accepts: {workdir} holds no calibration of these weights; make it with "
                f"python -m hap2s_jax.search --calibrate --workdir={workdir}"
            )
        return None, "no threshold: these weights are not calibrated (--calibrate)"
    if false_accepts is None:
        threshold = rates.default()
        if threshold is None:
            return None, f"no threshold: {rates.too_few()}"
    else:
        require(0 <= false_accepts <= 1, "--false_accepts", false_accepts, "a share between 0 and 1")
        try:
            threshold = rates.for_false_accepts(false_accepts)
        except ValueError as error:
            raise UserError(f"--false_accepts: {error} (search --calibrate --gallery=FILE)") from None
    return (
        threshold,
        f"threshold {threshold:.4f}: on {shown(rates.data)} ({rates.gallery:,} images) {rates.describe(threshold)}",
    )


def calibrate(options: argparse.Namespace) -> None:
    """Writes the calibration that the flags ask for, and prints what came of it."""
    rates, workdir = _on_gallery(options) if options.gallery else _on_own_classes(options)
    chosen = rates.default()
    words = rates.too_few() if chosen is None else f"threshold {chosen:.4f}: {rates.describe(chosen)}"
    print(f"{words}; {workdir / calibration.FILE_NAME}, {calibration.PICTURE}")


def _on_gallery(options: argparse.Namespace) -> tuple[ErrorRates, pathlib.Path]:
    gallery = open_gallery(options)
    encoder = commands.open_encoder(
        options, commands.workdir_of(options, options.gallery, gallery.model["workdir"])
    )
    check_weights(gallery, encoder)
    if not (gallery.labels >= 0).any():
        raise UserError(
            f"--calibrate: {options.gallery} holds no classes; embed a folder per class, or a CSV with labels"
        )
    _warn_of_training_images(gallery, encoder, options)
    images = calibration.Labelled(gallery.embeddings, gallery.labels, gallery.cameras)
    made = (
        images,
        encoder.config,
        encoder.variables,
        encoder.workdir,
        encoder.step,
        f"the images of {options.gallery}",
    )
    return calibration.write(*made), encoder.workdir


def _warn_of_training_images(
    gallery: vectors.Vectors, encoder: TrainedEncoder, options: argparse.Namespace
) -> None:
    """Says how many of a gallery's images were trained on."""
    try:
        places = {"data_dir": options.data_dir, "images": options.images}
        count = seen.count_trained_on(gallery, encoder.workdir, **places)
    except (ImportError, OSError, UserError, KeyError) as error:
        print(f"note: whether these images were trained on is not known: {error}")
        return
    if count:
        print(
            f"warning: {count:,} of {len(gallery.paths):,} images were trained on; new ones lie farther from their "
            "class, and nearer to others, than this calibration says"
        )


def _on_own_classes(options: argparse.Namespace) -> tuple[ErrorRates, pathlib.Path]:
    if options.workdir is None:
        raise UserError(
            "--calibrate needs --workdir, whose validation classes it is made on, or a labelled --gallery"
        )
    extras.require("--calibrate, which reads the run's data set,", "train")
    from hap2s_jax.run import config as configs
    from hap2s_jax.run import facts, foreign
    from hap2s_jax.run.evaluator import Evaluator

    config = foreign.load(options.workdir, data_dir=options.data_dir)
    with configs.written_by(options.workdir):
        encoder = commands.open_encoder(options)
        evaluator = Evaluator.of_run(config, encoder.module)
        facts.warn_of_changed_data(evaluator.dataset, encoder.workdir)
    made = evaluator, encoder.variables, encoder.workdir, encoder.step
    rates = calibration.calibrate(*made, with_test=options.with_test_classes)
    if options.with_test_classes:
        _note_in_card(encoder.workdir)
    return rates, encoder.workdir


def _note_in_card(workdir: pathlib.Path) -> None:
    """Says in the model card that the test classes have been used up."""
    note = (
        "The threshold was calibrated on the test classes too: the test figures below are no longer held out."
    )
    card = workdir / "model_card.md"
    print(f"note: {note.replace(' below', '')}")
    if card.is_file() and note not in (text := card.read_text()):
        with replacing(card) as temporary:
            temporary.write_text(text.replace("\n## Data", f"\n{note}\n\n## Data", 1))
