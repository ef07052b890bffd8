"""What a run leaves behind is JSON that anyone can read, also where a figure is a mean over nothing."""

from __future__ import annotations

import json
import math

import pytest

from hap2s_jax.reporting import card
from hap2s_jax.run import report

CONFIG = {"evaluate": {"weights": "best"}, "checkpoint": {"best_metric": "map@r"}}


def test_a_mean_over_nothing_is_null():
    written = report._without_nan({"test": {"mAP": math.nan, "rank-1": 0.5}, "list": [1, (math.inf, "a")]})
    assert written == {"test": {"mAP": None, "rank-1": 0.5}, "list": [1, [None, "a"]]}
    json.dumps(written, allow_nan=False)


def test_and_shows_as_missing(capsys):
    results = {
        "baselines": {},
        "untrained": {},
        "as_it_comes": {},
        "weights_of_step": 7,
        "steps": 9,
        "validation": {"map@r": 0.5},
        "config": CONFIG,
        "test": {"mAP": None, "rank-1": 0.25, "in_shop_recall@1": 0.75},
    }
    report.print_results(results)
    printed = capsys.readouterr().out
    assert "trained, step 7" in printed
    assert "step 7 of 9, the best by map@r on the validation classes" in printed
    assert "0.250" in printed
    assert "in_shop_recall@1" in printed
    assert "mAP" not in printed


@pytest.mark.parametrize("values", [{}, {"mAP": None}])
def test_a_row_of_nothing_is_left_out(values, capsys):
    results = {
        "baselines": {"pixels": values},
        "untrained": values,
        "as_it_comes": values,
        "weights_of_step": 1,
        "steps": 1,
        "config": CONFIG,
        "test": {"mAP": 0.5},
    }
    report.print_results(results)
    printed = capsys.readouterr().out
    assert "pixels" not in printed
    assert "0.500" in printed
    assert "step 1 of 1, the last" in printed  # since no validation classes were there to choose by


@pytest.mark.parametrize(("values", "equal"), [([0.5, 1, 0.9, 1], (2, 20)), ([0.5, 1, 0.9, 0.8], None)])
def test_a_metric_that_cannot_tell_checkpoints_apart_is_told(values, equal):
    records = [{"step": 10 * (n + 1), "validation/map@r": value} for n, value in enumerate(values)]
    lines = [*card.saturation({"config": CONFIG}, records)]
    assert len(lines) == (equal is not None)
    if equal:
        assert f"1.0000 at {equal[0]} of 4 evaluations, from step {equal[1]} on" in lines[0]
