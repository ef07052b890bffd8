"""What a run leaves behind is JSON that anyone can read, also where a figure is a mean over nothing."""

from __future__ import annotations

import json
import math

import pytest

from hap2s_jax.run import report


def test_a_mean_over_nothing_is_null():
    written = report._without_nan({"test": {"mAP": math.nan, "rank-1": 0.5}, "list": [1, (math.inf, "a")]})
    assert written == {"test": {"mAP": None, "rank-1": 0.5}, "list": [1, [None, "a"]]}
    json.dumps(written, allow_nan=False)


def test_and_shows_as_missing(capsys):
    results = {
        "baselines": {},
        "untrained": {},
        "weights_of_step": 7,
        "test": {"mAP": None, "rank-1": 0.25, "in_shop_recall@1": 0.75},
    }
    report.print_results(results)
    printed = capsys.readouterr().out
    assert "trained, step 7" in printed
    assert "0.250" in printed
    assert "in_shop_recall@1" in printed
    assert "mAP" not in printed


@pytest.mark.parametrize("values", [{}, {"mAP": None}])
def test_a_row_of_nothing_is_left_out(values, capsys):
    results = {
        "baselines": {"pixels": values},
        "untrained": values,
        "weights_of_step": 1,
        "test": {"mAP": 0.5},
    }
    report.print_results(results)
    printed = capsys.readouterr().out
    assert "pixels" not in printed
    assert "0.500" in printed
