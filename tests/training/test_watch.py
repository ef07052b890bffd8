import math

import pytest

from hap2s_jax.training.watch import CollapseWatch, DivergedError, check_finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm", "param_norm"])
def test_divergence_names_step_and_number(name, value):
    metrics = {"loss": 1.0, "grad_norm": 2.0, "param_norm": 3.0, name: value}
    with pytest.raises(DivergedError, match=rf"{name} not finite at step 17") as caught:
        check_finite(17, metrics)
    assert "\n" not in str(caught.value)


def test_other_statistics_may_be_missing_or_nan():
    check_finite(1, {"loss": 0.0, "grad_norm": 0.0, "param_norm": 1.0, "mean_positive_distance": math.nan})


def test_collapse_is_said_once_and_again_after_recovery():
    watch = CollapseWatch()
    good, bad = (
        {"embedding_spread": 0.9, "active_fraction": 0.5},
        {"embedding_spread": 1e-4, "active_fraction": 1.0},
    )
    windows = [good, bad, bad, good, bad, *4 * [good, bad]]
    warned = [step for step, metrics in enumerate(windows) if watch.check(step, metrics)]
    assert warned == [1, 4, 8]  # after a recovery at twice the step at the earliest


def test_a_silent_loss_is_said():
    (warning,) = CollapseWatch().check(5, {"embedding_spread": 1.0, "active_fraction": 0.0})
    assert "raise the margin" in warning
