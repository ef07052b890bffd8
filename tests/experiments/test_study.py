"""The studies: their cells, what they do with failures, their statistics, and that all of them run."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import ml_collections
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "experiments"), str(ROOT)]

import accuracy  # noqa: E402 - scripts, which lie on no path but their own
import cells as cells_script  # noqa: E402
import findings  # noqa: E402
import flexibility  # noqa: E402
import generality  # noqa: E402
import headline  # noqa: E402
import robustness  # noqa: E402
from study import cells, packed, report, search, training  # noqa: E402
from study.families import families  # noqa: E402
from study.figures import dots  # noqa: E402
from study.rows import Row, collect, correct, difference, first_metric  # noqa: E402

from configs import emoji as emoji_config  # noqa: E402
from hap2s_jax import formats, hap2s_loss, losses  # noqa: E402
from hap2s_jax.data import emoji  # noqa: E402
from hap2s_jax.data.turns import QuarterTurns  # noqa: E402
from hap2s_jax.errors import UserError  # noqa: E402
from hap2s_jax.losses import registry  # noqa: E402
from hap2s_jax.recipes import common  # noqa: E402
from hap2s_jax.training.watch import DivergedError  # noqa: E402

SETTING = cells.Setting("hap2s_e", "hap2s_e")


def new_study(folder, monkeypatch, outcome=None, *arguments):
    """A study whose cells are not trained but given, or raise what is given; and the list of those that ran."""
    ran = []

    def train(self, setting, seed, dataset, part):
        ran.append((setting, seed, part))
        result = outcome(setting, seed) if callable(outcome) else outcome
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(cells.Study, "_train", train)
    options = cells.parser("", "0,1").parse_args([f"--results={folder}", *arguments])
    return cells.Study(options), ran


def by_class(*means):
    return {"mAP": {"sums": [2 * m for m in means], "counts": [2] * len(means)}}


def scored(value):
    return {"metrics": {"mAP": value}, "by_class": by_class(value, value), "seconds": 1.0}


def test_a_finished_cell_is_not_run_again_whatever_it_is_called(tmp_path, monkeypatch):
    first, ran = new_study(tmp_path, monkeypatch, scored(0.5))
    assert first.run(SETTING, 0)["metrics"] == {"mAP": 0.5}
    again, ran_again = new_study(tmp_path, monkeypatch, scored(0.7))
    assert again.run(SETTING.but(label="other name"), 0)["metrics"] == {"mAP": 0.5}
    assert (len(ran), len(ran_again)) == (1, 0)
    assert again.run(SETTING, 1)["metrics"] == {"mAP": 0.7}
    assert again.run(SETTING.but(rate=0.5), 0)["metrics"] == {"mAP": 0.7}
    assert again.run(SETTING, 0, part="search")["metrics"] == {"mAP": 0.7}


def test_a_crash_is_reported_and_run_again(tmp_path, monkeypatch, capsys):
    crashed, _ = new_study(
        tmp_path, monkeypatch, lambda s, seed: MemoryError("full") if seed else scored(0.5)
    )
    row = collect(crashed, "hap2s_e", SETTING, [0, 1])
    assert list(row.outcomes) == [0]
    assert list(crashed.failed.values()) == ["MemoryError: full"]
    assert crashed.run(SETTING, 1) is None  # not again in this call
    assert "FAILED" in capsys.readouterr().err
    assert "1 of 2" in report.table([row], None)
    # Another call that only reports knows of it too, writes it down, and does not end well.
    reporting, _ = new_study(tmp_path, monkeypatch, None, "--report-only")
    rows = [collect(reporting, "hap2s_e", SETTING, [0, 1])]
    with pytest.raises(UserError, match=r"1 cells have crashed.*\n.*MemoryError: full"):
        report.write(reporting, "x", {"t": (rows, None)}, lambda: {"": dots({"t": rows}, steps=600)}, "")
    assert "MemoryError: full" in (tmp_path / "x.md").read_text()
    again, ran = new_study(tmp_path, monkeypatch, scored(0.7))
    row = collect(again, "hap2s_e", SETTING, [0, 1])
    assert row.values("mAP") == [0.5, 0.7]
    assert len(ran) == 1
    reporting, _ = new_study(tmp_path, monkeypatch, None, "--report-only")
    collect(reporting, "hap2s_e", SETTING, [0, 1])
    assert not reporting.failed


def test_a_part_of_a_study_hides_no_finished_cell(tmp_path, monkeypatch):
    assert new_study(tmp_path, monkeypatch, None, "--seeds=3,0,3")[0].shown_seeds == [0, 1, 3]
    assert new_study(tmp_path, monkeypatch, None, "--seeds=3", "--tiny")[0].shown_seeds == [3]


def test_tables_say_what_made_their_cells(tmp_path, monkeypatch):
    made = {
        "commit": "abc",
        "packages": {"jax": "0.9.1"},
        "devices": {"cpu": 1},
        "cpu": "Some CPU",
        "cpus": 1,
    }
    found, _ = new_study(
        tmp_path, monkeypatch, lambda s, seed: {**scored(0.5 + 0.1 * seed), "environment": made}
    )
    rows = [
        collect(found, name, SETTING.but(label=name, loss=name), [0, 1]) for name in ("hap2s_e", "hap2s_p")
    ]
    report.write(
        found, "x", {"t": (rows, rows[0])}, lambda: {"": dots({"t": rows}, steps=600)}, "", ["More."]
    )
    text, summary = (tmp_path / "x.md").read_text(), json.loads((tmp_path / "x.json").read_text())
    assert "More." in text
    assert "1 commits (in the .json), jax 0.9.1, Some CPU." in text
    assert summary["cells"]["count"] == 4
    assert summary["cells"]["commits"] == ["abc"]
    none = {"mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "n": 2}
    assert summary["tables"]["t"]["hap2s_p"]["over"] == {"hap2s_e": none}
    assert "+0.0000 [+0.0000, +0.0000], n = 2 n.s." in text


def test_a_cell_that_another_process_is_at_is_passed_over(tmp_path, monkeypatch):
    def outcome(setting, seed):
        passed = other.run(SETTING, 0)
        assert passed is None
        assert len(other.busy) == 1
        return scored(0.5)

    first, ran = new_study(tmp_path, monkeypatch, outcome)
    other = cells.Study(first.options)
    assert first.run(SETTING, 0)["metrics"] == {"mAP": 0.5}
    assert other.run(SETTING, 0)["metrics"] == {"mAP": 0.5}
    assert len(ran) == 1
    assert [path.suffix for path in (tmp_path / "cells" / "emoji").iterdir()] == [".json"]


def test_two_processes_search_together(tmp_path, monkeypatch):
    def outcome(setting, seed):
        time.sleep(0.3)
        return scored(-abs(setting.rate - 0.5))

    def searched(study):
        found = []
        study.complete(lambda: found.append(search.search(study, SETTING, ({"margin": 0.6},))))
        return found[-1]

    found, ran = new_study(tmp_path, monkeypatch, outcome)
    studies = [found, cells.Study(found.options)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        best = list(pool.map(searched, studies))
    assert best[0] == best[1]
    assert best[0].rate == 0.5
    assert len(ran) == 5  # each once


def test_a_mistake_of_the_users_ends_the_study(tmp_path, monkeypatch):
    broken, _ = new_study(tmp_path, monkeypatch, UserError("no data"))
    with pytest.raises(UserError, match="no data"):
        broken.run(SETTING, 0)


def test_divergence_is_kept_and_never_averaged_away(tmp_path, monkeypatch):
    def outcome(setting, seed):
        return DivergedError("not finite") if seed == 1 else scored(0.5)

    found, _ = new_study(tmp_path, monkeypatch, outcome)
    row = collect(found, "hap2s_e", SETTING, [0, 1])
    assert row.diverged == [1]
    assert row.values("mAP") == []
    assert "diverged: 1" in report.table([row], None)
    assert cells.primary(row.outcomes[1]) == -np.inf


def test_no_cell_begins_when_time_is_over(tmp_path, monkeypatch):
    short, ran = new_study(tmp_path, monkeypatch, scored(0.5), "--minutes=1e-9")
    with pytest.raises(cells.OutOfTime):
        short.run(SETTING, 0)
    assert not ran


def test_search_takes_the_best_rate_and_then_the_best_hyperparameters(tmp_path, monkeypatch):
    def outcome(setting, seed):
        if setting.rate == 2.0:
            return DivergedError("not finite")
        return scored(0.3 - abs(setting.rate - 0.5) + 0.1 * (setting.hyperparameters.get("margin") == 0.6))

    found, ran = new_study(tmp_path, monkeypatch, outcome)
    best = search.search(found, SETTING, ({"margin": 0.1}, {"margin": 0.6}, {"sigma": 1.0}))
    assert (best.rate, best.hyperparameters) == (0.5, {"margin": 0.6})
    assert len(ran) == 7
    assert all((seed, part) == (0, "search") for _, seed, part in ran)


@pytest.mark.parametrize(
    ("peak", "chosen", "tried"),
    [(0.1, 0.125, 6), (0.0, 0.0625, 6), (4.1, 4.0, 6), (9.0, 8.0, 6), (0.3, 0.25, 5)],
)
def test_the_search_goes_on_beyond_the_edge_of_the_grid(tmp_path, monkeypatch, peak, chosen, tried):
    found, ran = new_study(tmp_path, monkeypatch, lambda setting, seed: scored(-abs(setting.rate - peak)))
    best = search.search(found, SETTING, ())
    assert (best.rate, len(ran)) == (chosen, tried)


def test_the_search_in_stages(tmp_path, monkeypatch):
    """Two seeds decide, own parameters go on beyond their grid, and the best two train for longer."""

    def outcome(setting, seed):
        sigma = setting.hyperparameters.get("sigma", 0.5)
        if setting.overrides:
            return scored(sigma == 0.065)  # with more steps another is best
        if setting.hyperparameters.get("margin"):
            return scored(-5)
        # Seed 0 alone would choose rate 2; sigma is best at 0.1, which the grid does not have.
        return scored(
            -abs(setting.rate - 0.5) + (setting.rate == 2.0) * (2.0, -2.0)[seed] - 0.1 * abs(sigma - 0.1)
        )

    found, ran = new_study(tmp_path, monkeypatch, outcome)
    axes = [search.Axis("sigma", (0.2, 0.35))]
    best = search.staged(
        found, SETTING, axes, search.Budget(), others=[{"margin": 0.6}], longer={"steps": 1200}
    )
    assert (best.rate, best.hyperparameters, best.overrides) == (0.5, {"sigma": 0.065}, {"steps": 1200})
    # Four rates; two sigmas and two beyond, 0.114 and 0.0653; the other margin; two finalists: each with two seeds.
    assert len(ran) == 2 * (4 + 4 + 1 + 2)
    tried = {s.hyperparameters.get("sigma") for s, _, _ in ran}
    assert tried == {None, 0.2, 0.35, 0.114, 0.065}
    again, ran = new_study(tmp_path, monkeypatch, None, "--report-only")
    assert best == search.staged(
        again, SETTING, axes, search.Budget(), others=[{"margin": 0.6}], longer={"steps": 1200}
    )
    assert not ran


def test_a_search_that_keeps_the_rate(tmp_path, monkeypatch):
    axes = [search.Axis("identification", (0.03, 0.3))]
    found, ran = new_study(
        tmp_path, monkeypatch, lambda setting, seed: scored(-abs(setting.identification - 0.3))
    )
    base = SETTING.but(identification=0.1, rate=0.5)
    best = search.staged(found, base, axes, search.Budget(seeds=(0,)), rates=(1.0,))
    assert (best.identification, {s.rate for s, _, _ in ran}) == (0.3, {0.5})
    assert sorted(s.identification for s, _, _ in ran) == [0.03, 0.1, 0.3, 0.9]


def test_grids_end_where_values_mean_nothing():
    assert search.Axis("ratio", (), below=1.0).beyond(0.8, 0.65) == 0.985
    assert search.Axis("ratio", (), below=1.0).beyond(0.9, 0.65) is None
    assert search.Axis("count", ()).beyond(16, 8) == 32
    assert search.Axis("count", ()).beyond(1, 3) is None


def test_every_loss_of_the_headline_has_four_values_of_its_own_that_it_knows(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    flexibility.register_weightings()
    for name, loss in headline.NAMED.items():
        assert sum(len(axis.values) for axis in loss.axes) + len(loss.others) == 4, name
        settings = [axis.put(loss.setting, value) for axis in loss.axes for value in axis.values]
        for setting in [loss.setting, *settings, *(loss.setting.but(hyperparameters=c) for c in loss.others)]:
            losses.create(setting.loss, **setting.hyperparameters)
            assert cells.resolve(cells.parser("", "0").parse_args([]), setting, 0, "emoji")
        assert len({repr(s) for s in [loss.setting, *settings]}) == 1 + len(settings), name


def test_an_estimate_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    with pytest.raises(UserError, match="no cell of this encoder has finished"):
        headline.main([f"--results={tmp_path}", "--estimate"])
    found, ran = new_study(tmp_path, monkeypatch, {**scored(0.5), "seconds": 300.0})
    found.run(SETTING, 0)
    headline.main([f"--results={tmp_path}", "--estimate", "--parts=headline"])
    lines = capsys.readouterr().out.splitlines()
    assert len(ran) == 1
    assert lines[-1] == "at 0.500 s a step, the median of 1 cells"
    # Fourteen losses with at least eight trials of two seeds, two finalists of two, and five seeds at the end.
    assert int(lines[-2].split()[1]) >= 14 * (2 * 8 + 2 * 2 + 5)


def test_every_loss_has_as_many_trials_of_values_that_it_knows():
    for setting, alternatives in accuracy.ENTRIES.values():
        assert len(alternatives) == 3
        known = losses.hyperparameters(setting.loss)
        tried = [setting, *(setting.changed(changes) for changes in alternatives)]
        for one in tried:
            losses.create(setting.loss, **one.hyperparameters)
        # None of them is the setting that the search begins with.
        assert len({str([{**known, **one.hyperparameters}, one.overrides]) for one in tried}) == 4


def difference_of(values, others, groups=None):
    def row(label, values):
        outcomes = {s: {"metrics": {"mAP": v.mean()}, "by_class": by_class(*v)} for s, v in enumerate(values)}
        return Row(label, SETTING, outcomes, tuple(range(len(values))), groups)

    return difference(row("a", values), row("b", others), "mAP")


def test_the_difference_and_its_interval():
    random = np.random.default_rng(0)
    base = random.uniform(size=(2, 60))
    gain = 0.05 + 0.02 * random.normal(size=60)
    found = difference_of(base + gain, base)
    np.testing.assert_allclose(found.mean, gain.mean(), rtol=1e-9)
    # Paired by class: the spread of the gains counts, not the far larger one of the classes.
    half = 1.96 * gain.std() / 60**0.5
    np.testing.assert_allclose(
        [found.low, found.high], [gain.mean() - half, gain.mean() + half], atol=0.2 * half
    )
    np.testing.assert_allclose(found.by_seed, [gain.mean()] * 2, rtol=1e-9)
    assert found.p < 1e-9  # less than resamples can show, since a table has hundreds of comparisons
    # Sixty copies of three look-alikes are three draws: the interval is wider by the root of twenty.
    copied, groups = np.repeat(gain[:3], 20), [str(i // 20) for i in range(60)]
    wide = difference_of(base + copied, base, groups)
    narrow = difference_of(base + copied, base)
    np.testing.assert_allclose((wide.high - wide.low) / (narrow.high - narrow.low), 20**0.5, rtol=0.1)
    # Five seeds that differ: the spread over them is in the interval too.
    by_seed = np.array([0.05, 0.03, -0.02, 0.06, 0.01])[:, None]
    five = difference_of(np.full((5, 60), 0.5) + by_seed, np.full((5, 60), 0.5))
    np.testing.assert_allclose(five.high - five.low, 3.92 * by_seed.std() / 5**0.5, rtol=0.1)
    assert difference(Row("c", SETTING, {}, (0, 1)), Row("d", SETTING, {}, (0,)), "mAP") is None


def test_many_comparisons_are_corrected():
    differences = [
        difference_of(np.full((2, 4), 0.5 + x), np.full((2, 4), 0.5)) for x in (0.1, 0.1, 0.1, 0.1)
    ]
    for entry, p in zip(differences, (0.01, 0.04, 0.03, 0.005), strict=True):
        entry.p = p
    correct([*differences, None])
    # Holm's own example: sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    np.testing.assert_allclose([d.p for d in differences], [0.03, 0.06, 0.06, 0.02])
    assert [d.established for d in differences] == [True, False, False, True]


def test_look_alike_emoji_are_families():
    names = families("emoji")
    assert len(names) == len(emoji.load().test.class_names) == 531
    assert len(set(names)) == 139
    assert max(map(names.count, set(names))) == 43


def test_configs_differ_in_what_the_setting_says(tmp_path, monkeypatch):
    found, _ = new_study(tmp_path, monkeypatch, None, "--set", "steps=77")
    setting = SETTING.but(hyperparameters={"sigma": 0.1}, rate=0.5, identification=0.2)
    setting = robustness.noisy(setting, "labels", 0.2, 3, "emoji")
    config, plain = found.config(setting, 3, "emoji"), found.config(SETTING, 0, "emoji")
    assert (config.steps, config.seed, config.loss.sigma, config.auxiliary.weight) == (77, 3, 0.1, 0.2)
    assert config.optimizer.learning_rate == plain.optimizer.learning_rate / 2
    assert (config.data.noise.kind, config.data.noise.fraction, config.data.noise.seed) == ("labels", 0.2, 3)
    assert plain.auxiliary.name == ""
    assert robustness.noisy(SETTING, "labels", 0.0, 3, "emoji") is SETTING
    with pytest.raises(UserError, match=r"no configs/nothing\.py"):
        found.config(SETTING, 0, "nothing")


@pytest.mark.parametrize("kind", ["", "labels"])
def test_the_search_measures_clean_upright_classes_that_it_does_not_train_on(kind):
    clean = emoji.load()
    config = emoji_config.get_config()
    config.data.noise.update({"kind": kind, "fraction": 0.5 if kind else 0.0})
    dataset, measured = training.halves(config, clean)
    turns = dataset.train
    assert isinstance(turns, QuarterTurns)
    assert not set(turns.source.class_names) & set(measured.class_names)
    assert len(turns.source) + len(measured) == len(clean.train)
    name_of = {
        clean.train.read(i): clean.train.class_names[clean.train.labels[i]] for i in range(len(clean.train))
    }
    for source, wrong in ((measured, 0.0), (turns.source, 0.5 if kind else 0.0)):
        names = [source.class_names[label] for label in source.labels]
        flipped = [name_of[source.read(i)] != name for i, name in enumerate(names)]
        assert np.isclose(np.mean(flipped), wrong, atol=0.01)


@pytest.mark.parametrize(
    ("classes", "shares", "expected"), [(100, 1, 56), (50, 1, 50), (49, 4, 48), (3, 16, 56)]
)
def test_the_search_takes_as_many_classes_as_half_of_them_allow(classes, shares, expected):
    batch = ml_collections.ConfigDict({"classes": 56, "images_per_class": 2})
    labels = np.append(np.repeat(np.arange(classes), 3), -1)
    assert training.classes_that_fit(batch, labels, shares) == expected


def test_a_cell_is_what_its_config_says_and_not_where_it_runs(tmp_path, monkeypatch):
    found, ran = new_study(tmp_path, monkeypatch, scored(0.5))
    found.run(SETTING, 0)
    # The default by more words.
    found.run(SETTING.but(hyperparameters={"sigma": losses.hyperparameters("hap2s_e")["sigma"]}), 0)
    for same in ("num_devices=2", "data.cache_bytes=0", "data.data_dir=elsewhere", "log.every_steps=7"):
        new_study(tmp_path, monkeypatch, scored(0.5), "--set", same)[0].run(SETTING, 0)
    assert len(list(tmp_path.rglob("*.json"))) == 1
    assert len(ran) == 1
    recipe = emoji_config.get_config

    def changed(argument=None):
        config = recipe(argument)
        config.augment.rotate = 3.0  # not one of the keys that the study holds fixed
        return config

    monkeypatch.setattr(emoji_config, "get_config", changed)
    new_study(tmp_path, monkeypatch, scored(0.5))[0].run(SETTING, 0)
    assert len(list(tmp_path.rglob("*.json"))) == 2


def with_changes(monkeypatch, change, hyperparameters=None):
    """The common config as `change` makes it, and all losses with further hyperparameters."""
    recipe, known = common.get_config, losses.hyperparameters
    monkeypatch.setattr(losses, "hyperparameters", lambda name: known(name) | (hyperparameters or {}))

    def get_config():
        config = recipe()
        change(config)
        return config

    monkeypatch.setattr(common, "get_config", get_config)


def new_keys(config):
    config.augment.sharpen = 0.0
    config.brand_new = {"section": {"key": (1, 2)}}


def test_new_keys_orphan_no_finished_cell(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    flexibility.register_weightings()
    with_changes(monkeypatch, new_keys, {"new_number": 0.5})
    monkeypatch.setattr(cells.Study, "_train", None)
    found = cells.Study(cells.parser("", "0").parse_args(["--report-only"]))
    kept = [c for d in ("emoji", "glyphs") for c in packed.load(ROOT / cells.RESULTS / "cells" / d).values()]
    assert len(kept) >= 573
    for record in kept:
        cell = record["cell"]
        fields = {field.name: cell[field.name] for field in dataclasses.fields(cells.Setting)}
        outcome = found.run(cells.Setting(**fields), cell["seed"], dataset=cell["dataset"], part=cell["part"])
        assert outcome is not None, cell
        assert outcome["cell"] == cell


def test_cells_of_another_default_are_other_cells(tmp_path, monkeypatch):
    new_study(tmp_path, monkeypatch, scored(0.5))[0].run(SETTING, 0)
    with_changes(monkeypatch, new_keys, {"new_number": 0.5})
    found, ran = new_study(tmp_path, monkeypatch, scored(0.6))
    assert found.run(SETTING, 0)["metrics"] == {"mAP": 0.5}
    # What is not at its default, be it new or old, is another cell.
    for n, changes in enumerate(
        ({"overrides": {"augment.sharpen": 1.0}}, {"hyperparameters": {"new_number": 1.0}}), start=1
    ):
        assert found.run(SETTING.but(**changes), 0)["metrics"] == {"mAP": 0.6}
        assert len(ran) == n
    with_changes(monkeypatch, lambda config: config.optimizer.update(clip_norm=3.0), {"sigma": 0.25})
    found, _ = new_study(tmp_path, monkeypatch, scored(0.7))
    assert found.run(SETTING, 0)["metrics"] == {"mAP": 0.7}
    old = {"hyperparameters": {"sigma": 0.5}, "overrides": {"optimizer.clip_norm": 0.0}}
    assert found.run(SETTING.but(**old), 0)["metrics"] == {"mAP": 0.5}


def test_cells_have_the_number_of_their_format(tmp_path, monkeypatch):
    outcome = new_study(tmp_path, monkeypatch, scored(0.5))[0].run(SETTING, 0)
    (path,) = tmp_path.rglob("*.json")
    assert json.loads(path.read_text())["format"] == outcome["format"] == formats.FORMAT

    # A key that is renamed by the next format.
    def rename(config, record):
        config["optimizer"]["max_norm"] = config["optimizer"].pop("clip_norm")

    def renamed(config):
        del config.optimizer.clip_norm
        config.optimizer.max_norm = 0.0

    with monkeypatch.context() as later:
        later.setattr(formats, "FORMAT", formats.FORMAT + 1)
        later.setattr(formats, "_STEPS", (*formats._STEPS, rename))
        with_changes(later, renamed)
        found, ran = new_study(tmp_path, later, scored(0.6))
        assert found.run(SETTING, 0)["metrics"] == {"mAP": 0.5}
        assert found.run(SETTING, 1)["format"] == formats.FORMAT
        assert len(ran) == 1
    with pytest.raises(UserError, match=rf"has format {formats.FORMAT + 1}, and this version"):
        new_study(tmp_path, monkeypatch, scored(0.7))[0].run(SETTING, 0)
    for path in tmp_path.rglob("*.json"):
        path.write_text("{")
    with pytest.raises(UserError, match=r"is no finished cell .*; remove it"):
        new_study(tmp_path, monkeypatch, scored(0.7))[0].run(SETTING, 0)


def test_packed_cells_are_the_same_cells(tmp_path, monkeypatch):
    study, _ = new_study(
        tmp_path, monkeypatch, lambda s, seed: scored(0.5 + seed / 8) | {"environment": {"cpu": "x"}}
    )
    for seed in (0, 1):
        study.run(SETTING, seed)
    study.run(SETTING, 0, part="search")
    folder = tmp_path / "cells" / "emoji"
    before = packed.load(folder)
    assert study.kept.pack() == 3
    assert {path.name for path in folder.iterdir()} == {packed.LINES, packed.FIGURES}
    first = [(folder / name).read_bytes() for name in (packed.LINES, packed.FIGURES)]
    assert packed.check(folder) == []

    def plain(cells):
        return {n: json.loads(packed.as_text(c | {"config": None})) for n, c in cells.items()}

    after = packed.load(folder)
    assert plain(after) == plain(before)
    new, ran = new_study(tmp_path, monkeypatch, scored(0.9))
    assert new.run(SETTING, 1)["metrics"] == {"mAP": 0.625}
    assert new.run(SETTING, 2)["metrics"] == {"mAP": 0.9}
    assert len(ran) == 1
    assert packed.unpack(folder) == 3
    assert plain(packed.load(folder)).keys() > plain(before).keys()
    next(folder.glob("*seed2*")).unlink()
    new.kept.pack()
    assert [(folder / name).read_bytes() for name in (packed.LINES, packed.FIGURES)] == first
    text = (folder / packed.LINES).read_text()
    (folder / packed.LINES).write_text(text.replace('"mAP": 0.625', '"mAP": 0.635'))
    assert packed.check(folder) == [f"{[*before][2]}: mAP is 0.63500, by its classes 0.62500"]
    (folder / packed.LINES).write_text(text[:-9])
    with pytest.raises(UserError, match=r"holds no finished cells .*; restore it with: git checkout"):
        new_study(tmp_path, monkeypatch, None)[0].run(SETTING, 0)


def test_pages_say_what_the_tables_say():
    """Every number of the studies on the two pages comes out of experiments/findings.py."""
    made = findings.parts(ROOT / cells.RESULTS)
    used = set()
    for name in findings.PAGES:
        page = (ROOT / name).read_text()
        assert findings.written(page, made) == page, f"{name}: python experiments/findings.py"
        used |= set(re.findall(r"<!-- study: (\w+) -->", page))
        rest = re.sub(r"<!-- study: .*?<!-- /study -->", "", page, flags=re.DOTALL)
        assert not re.findall(r"\b0\.\d{3}\b", rest), f"{name} has figures that no script makes"
    assert used == set(made)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (accuracy, ["--losses=headline,others"]),
        (robustness, []),
        (flexibility, []),
        (generality, []),
        (
            headline,
            [
                "--parts=headline",
                (
                    "--losses=batch_hard,hap2s_e,hap2s_p,hap2s_p detached,hap2s_hardest,nt_xent (n-pair),"
                    "multi_similarity,contrastive,softmax"
                ),
                "--seeds=0,1,2",
            ],
        ),
    ],
)
def test_the_tables_are_those_of_the_kept_cells(script, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    name = script.__name__
    monkeypatch.setattr(sys, "argv", [f"experiments/{name}.py", *arguments, "--report-only"])
    (tmp_path / "cells").symlink_to(ROOT / cells.RESULTS / "cells")
    monkeypatch.setattr(report, "save_figures", lambda *_: None)
    script.main([*arguments, "--report-only", f"--results={tmp_path}"])
    assert (tmp_path / f"{name}.md").read_text() == (ROOT / cells.RESULTS / f"{name}.md").read_text()
    kept, made = (json.loads((f / f"{name}.json").read_text()) for f in (ROOT / cells.RESULTS, tmp_path))
    assert made == kept


def test_shipped_cells_are_whole():
    for name in ("emoji", "glyphs"):
        assert packed.check(ROOT / cells.RESULTS / "cells" / name) == []
        assert len(set(packed.families_of(ROOT / cells.RESULTS / "cells" / name))) > 100


def test_a_cell_says_its_command_and_runs_again_from_its_own_config(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.setattr(sys, "argv", ["experiments/x.py", "--set=steps=7"])
    setting = SETTING.but(
        hyperparameters={"sigma": 0.1}, identification=0.2, overrides={"augment.rotate": 3.0}
    )
    study, _ = new_study(tmp_path, monkeypatch, scored(0.5), "--set=steps=7")
    record = study.run(setting, 3, part="search")
    assert record["command"] == "python experiments/x.py --set=steps=7"
    trained = []
    monkeypatch.setattr(
        cells_script,
        "train_cell",
        lambda *given: trained.append(given) or {"metrics": {"mAP": 0.625}, "seconds": 9},
    )
    cells_script.main(["list", "seed3", f"--results={tmp_path}"])
    name = capsys.readouterr().out.strip()
    cells_script.main(["rerun", name, f"--results={tmp_path}"])
    assert "| mAP | 0.5000 | 0.6250 |" in capsys.readouterr().out
    ((config, part),) = trained
    assert part == "search"
    wanted = cells.of_the_outcome(study.config(setting, 3, "emoji"))
    assert cells.of_the_outcome(config) == wanted
    with pytest.raises(UserError, match="unknown cell"):
        cells_script.main(["rerun", "nothing", f"--results={tmp_path}"])


def test_code_that_differs_from_its_commit_trains_no_cell(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x", *arguments], check=True
        )

    for name in ("hap2s_jax/a.py", "experiments/results/b.md", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    monkeypatch.setattr(training, "_ROOT", tmp_path)
    for name in ("experiments/results/b.md", "experiments/results/c.json", "README.md"):
        (tmp_path / name).write_text("2")
    training.refuse_changes()
    for name in ("hap2s_jax/a.py", "configs/new.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("2")
        with pytest.raises(UserError, match=rf"{name} differ"):
            training.refuse_changes()
        git("add", ".")
        git("commit", "-qm", "y")
    monkeypatch.setattr(training, "_ROOT", tmp_path / "hap2s_jax" / "nothing")
    training.refuse_changes()


def test_folders_are_data_and_so_make_other_cells(tmp_path, monkeypatch):
    for place in ("data/a.csv", "data/b.csv"):
        new_study(tmp_path, monkeypatch, scored(0.5), "--dataset=glyphs", "--set", f"data.data_dir={place}")[
            0
        ].run(SETTING, 0)
    assert len(list(tmp_path.rglob("*.json"))) == 2


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            "optimizer.learning_rat=0.1",
            r"unknown config key in --set.*did you mean 'optimizer\.learning_rate'",
        ),
        ("num_device=1", "did you mean 'num_devices'"),
        ("steps", "has no value; give --set steps=VALUE"),
        ("steps=many", "many is not of the type of 600"),
        ("loss.sigma=1.0", "what the study chooses"),
        ("seed=3", "what the study chooses"),
    ],
)
def test_an_override_that_does_not_fit_is_refused_at_once(tmp_path, monkeypatch, item, message):
    with pytest.raises(UserError, match=message):
        new_study(tmp_path, monkeypatch, None, "--set", item)


@pytest.mark.parametrize("script", [accuracy, robustness, flexibility, generality])
def test_a_mistake_in_the_seeds_is_one_line(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    with pytest.raises(SystemExit):
        script.main(["--tiny", "--seeds=a"])
    assert "whole numbers such as 0,1,2 are wanted, not 'a'" in capsys.readouterr().err


def test_generality_asks_for_configs_that_are_there_and_for_variants_that_differ(tmp_path, monkeypatch):
    new_study(tmp_path, monkeypatch, scored(0.5))
    with pytest.raises(UserError, match="there is no configs/nothing"):
        generality.main([f"--results={tmp_path}", "--datasets=emoji,nothing"])
    generality.main([f"--results={tmp_path}", "--dataset=market1501", "--report-only", "--seeds=0"])
    titles = json.loads((tmp_path / "generality-market1501.json").read_text())["tables"]
    assert next(iter(titles)) == "market1501"
    assert "market1501, ResNet-18" in titles
    assert "market1501, pooling over the whole map" not in titles  # it pools so anyway


def test_generality_shows_the_cells_of_data_that_are_gone(tmp_path, monkeypatch):
    def outcome(setting, seed):
        return UserError("no images") if setting.overrides else scored(0.5)

    monkeypatch.setattr(generality, "LOSSES", ("batch_hard",))
    new_study(tmp_path, monkeypatch, outcome)
    generality.main([f"--results={tmp_path}", "--seeds=0"])
    tables = json.loads((tmp_path / "generality.json").read_text())["tables"]
    assert list(tables) == ["emoji", "glyphs"]
    assert "emoji, ResNet-18 was left out by this call: no images" in (tmp_path / "generality.md").read_text()
    new_study(tmp_path, monkeypatch, UserError("no glyphs"))
    generality.main([f"--results={tmp_path}", "--seeds=0,1", "--datasets=glyphs"])
    glyphs = json.loads((tmp_path / "generality.json").read_text())["tables"]["glyphs"]
    assert list(glyphs["batch_hard"]["seeds"]) == ["0"]


def test_every_data_set_trains_unit_embeddings_and_tiny_ones_need_no_weights(tmp_path, monkeypatch):
    for name in ("market1501", "cub", "cars196", "glyphs"):
        found, _ = new_study(tmp_path, monkeypatch, None, f"--dataset={name}", "--tiny")
        assert found.plain.encoder.normalize
        assert not found.plain.pretrained.source


def test_tiny_and_overridden_studies_leave_the_tables_alone():
    def study(*arguments):
        return cells.Study(cells.parser("", "0").parse_args(arguments))

    assert study().folder == pathlib.Path("experiments/results")
    assert study("--tiny").folder == pathlib.Path("runs/tiny_studies")
    assert study("--tiny", "--results=here").folder == pathlib.Path("here")
    names = {accuracy.suffix(study(*a)) for a in ((), ("--set=steps=3",), ("--set=steps=4",))}
    assert len(names) == 3
    assert accuracy.suffix(study("--dataset=glyphs")) == "-glyphs"
    assert "" in names


def test_data_without_cameras_are_compared_by_what_their_settings_are_chosen_by(tmp_path, monkeypatch):
    def outcome(setting, seed):
        figures = {"sums": [1.0, 1.5], "counts": [2, 2]}
        metrics = {"recall@1": 0.5, "map@r": 0.625}
        return {"metrics": metrics, "by_class": {"recall@1": figures, "map@r": figures}, "seconds": 1.0}

    found, _ = new_study(tmp_path, monkeypatch, outcome)
    rows = [collect(found, name, cells.Setting(name, name), [0]) for name in ("batch_hard", "hap2s_e")]
    assert first_metric(rows) == "map@r"
    assert "map@r over batch_hard" in report.table(rows, rows[0])
    report.write(found, "x", {"table": (rows, rows[0])}, lambda: {"": dots({"": rows}, steps=600)}, "")
    summary = json.loads((tmp_path / "x.json").read_text())
    assert summary["tables"]["table"]["hap2s_e"]["over_baseline"]["mean"] == 0.0


def test_a_rate_at_the_edge_of_the_grid_is_marked():
    rates = (0.0625, 0.125, *search.RATES, 4.0, 8.0)
    rows = [Row(f"{rate}", SETTING.but(rate=rate), {}, (0,)) for rate in rates]
    marked = [line.split("|")[1].strip() for line in report.table(rows, None).splitlines() if "edge" in line]
    assert marked == ["0.0625", "8.0"]


def test_weight_functions_favour_the_hard(monkeypatch):
    # What the study registers must not stay for the tests of the library's own losses.
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    flexibility.register_weightings()
    distances = np.array([0.2, 0.5, 0.9, 1.4, 1.1], np.float32)
    mask = np.array([True, True, True, True, False])
    for name, weighting in flexibility.WEIGHTINGS.items():
        rising = np.asarray(weighting.positive(distances, mask))[:4]
        assert np.all(np.diff(rising) >= 0), name
        assert rising[3] > rising[0], name
        falling = np.asarray(weighting.negative(distances, mask))[:4]
        assert np.all(np.diff(falling) <= 0), name
        assert falling[0] > falling[3], name
    labels = np.array([0, 0, 1, 1, 1])
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert losses.create("hap2s_e detached")(x, labels, with_stats=False) == hap2s_loss(x, labels)
    named = flexibility.without_defaults(cells.Setting("sigma 0.5", "hap2s_e", {"sigma": 0.5, "margin": 0.1}))
    assert named.hyperparameters == {"margin": 0.1}


def test_glyphs(tmp_path):
    pytest.importorskip("pymupdf_fonts")
    import glyphs

    from hap2s_jax.data.readers.own import read_folder

    counts = glyphs.build(tmp_path, every=25)
    parts = read_folder(tmp_path / "glyphs.csv")
    assert (len(parts.train), len(parts.test)) == (counts["train"], counts["query"] + counts["gallery"])
    assert not set(parts.train.class_names) & set(parts.test.class_names)
    assert counts["families"] == 11
    assert parts.test.cameras is not None
    assert len(np.unique(parts.test.cameras)) >= glyphs.MIN_FAMILIES


@pytest.mark.slow
def test_all_studies_run_and_share_their_cells(tmp_path):
    arguments = ["--tiny", "--seeds=0", f"--results={tmp_path}"]
    lines = ["import accuracy, flexibility, generality, robustness", f"a = {arguments}", "accuracy.main(a)"]
    lines += ["robustness.main([*a, '--kinds=labels'])", "flexibility.main(a)"]
    lines += ["generality.main([*a, '--datasets=emoji,cub'])"]
    # Machine code that is not optimised, since there are only a few steps to run.
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'experiments'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cub is left out" in done.stderr
    for name in ("accuracy", "robustness", "flexibility", "generality"):
        summary = json.loads((tmp_path / f"{name}.json").read_text())
        assert (summary["unfinished_cells"], summary["failed_cells"]) == (0, [])
        assert "batch_hard" in (tmp_path / f"{name}.md").read_text()
        assert (tmp_path / f"{name}.png").stat().st_size > 0
    made = list((tmp_path / "cells" / "emoji").glob("*.json"))
    # Two for each of two losses, and the one rate of another weight function.
    assert len([path for path in made if "-search-" in path.name]) == 5
    # 2 clean, 2 noisy, 1 of another weight function, 1 of another backbone.
    assert len([path for path in made if "-test-" in path.name]) == 6
