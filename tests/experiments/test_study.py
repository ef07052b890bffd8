"""The studies: their cells, what they do with failures, their statistics, and that all of them run."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import ml_collections
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "experiments"), str(ROOT)]

import accuracy  # noqa: E402 - scripts, which lie on no path but their own
import flexibility  # noqa: E402
import generality  # noqa: E402
import robustness  # noqa: E402
from study import cells, report  # noqa: E402

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
    row = report.collect(crashed, "hap2s_e", SETTING, [0, 1])
    assert list(row.outcomes) == [0]
    assert list(crashed.failed.values()) == ["MemoryError: full"]
    assert crashed.run(SETTING, 1) is None  # not again in this call
    assert "FAILED" in capsys.readouterr().err
    assert "1 of 2" in report.table([row], None)
    # Another call that only reports knows of it too, writes it down, and does not end well.
    reporting, _ = new_study(tmp_path, monkeypatch, None, "--report-only")
    rows = [report.collect(reporting, "hap2s_e", SETTING, [0, 1])]
    with pytest.raises(UserError, match=r"1 cells have crashed.*\n.*MemoryError: full"):
        report.write(reporting, "x", {"t": (rows, None)}, report.dots({"t": rows}), "")
    assert "MemoryError: full" in (tmp_path / "x.md").read_text()
    again, ran = new_study(tmp_path, monkeypatch, scored(0.7))
    row = report.collect(again, "hap2s_e", SETTING, [0, 1])
    assert row.values("mAP") == [0.5, 0.7]
    assert len(ran) == 1
    reporting, _ = new_study(tmp_path, monkeypatch, None, "--report-only")
    report.collect(reporting, "hap2s_e", SETTING, [0, 1])
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
        report.collect(found, name, SETTING.but(label=name, loss=name), [0, 1])
        for name in ("hap2s_e", "hap2s_p")
    ]
    report.write(found, "x", {"t": (rows, rows[0])}, report.dots({"t": rows}), "", ["More."])
    text, summary = (tmp_path / "x.md").read_text(), json.loads((tmp_path / "x.json").read_text())
    assert "More." in text
    assert "1 commits (in the .json), jax 0.9.1, Some CPU." in text
    assert summary["cells"]["count"] == 4
    assert summary["cells"]["commits"] == ["abc"]
    assert summary["tables"]["t"]["hap2s_p"]["over"] == {"hap2s_e": "+0.0000 [+0.0000, +0.0000], 0 of 2"}
    assert "+0.0000 [+0.0000, +0.0000], 0 of 2" in text


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

    found, ran = new_study(tmp_path, monkeypatch, outcome)
    studies = [found, cells.Study(found.options)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        best = list(pool.map(lambda study: cells.search(study, SETTING, ({"margin": 0.6},)), studies))
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
    row = report.collect(found, "hap2s_e", SETTING, [0, 1])
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
    best = cells.search(found, SETTING, ({"margin": 0.1}, {"margin": 0.6}, {"sigma": 1.0}))
    assert (best.rate, best.hyperparameters) == (0.5, {"margin": 0.6})
    assert len(ran) == 7
    assert all((seed, part) == (0, "search") for _, seed, part in ran)


@pytest.mark.parametrize(
    ("peak", "chosen", "tried"),
    [(0.1, 0.125, 6), (0.0, 0.0625, 6), (4.1, 4.0, 6), (9.0, 8.0, 6), (0.3, 0.25, 5)],
)
def test_the_search_goes_on_beyond_the_edge_of_the_grid(tmp_path, monkeypatch, peak, chosen, tried):
    found, ran = new_study(tmp_path, monkeypatch, lambda setting, seed: scored(-abs(setting.rate - peak)))
    best = cells.search(found, SETTING, ())
    assert (best.rate, len(ran)) == (chosen, tried)


def test_every_loss_has_as_many_trials_of_values_that_it_knows():
    for setting, alternatives in {**accuracy.HEADLINE, **accuracy.OTHERS}.values():
        assert len(alternatives) == 3
        for changes in ({}, *alternatives):
            losses.create(setting.loss, **setting.but(hyperparameters=changes).hyperparameters)


def test_the_difference_and_its_interval():
    random = np.random.default_rng(0)
    base = random.uniform(size=(2, 60))
    gain = 0.05 + 0.02 * random.normal(size=60)

    def row(label, values):
        outcomes = {s: {"metrics": {"mAP": v.mean()}, "by_class": by_class(*v)} for s, v in enumerate(values)}
        return report.Row(label, SETTING, outcomes, (0, 1))

    mean, low, high, by_seed = report.difference(row("a", base + gain), row("b", base), "mAP")
    np.testing.assert_allclose(mean, gain.mean(), rtol=1e-9)
    # Paired by class: the spread of the gains counts, not the far larger one of the classes.
    half = 1.96 * gain.std() / 60**0.5
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.2 * half)
    alone = report.Row("c", SETTING, {}, (0, 1))
    assert report.difference(alone, row("b", base), "mAP") is None
    np.testing.assert_allclose(by_seed, [gain.mean()] * 2, rtol=1e-9)


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


def test_the_search_measures_upright_classes_that_it_does_not_train_on():
    upright = emoji.load().train
    trained, measured = cells.search_parts(QuarterTurns(upright))
    assert isinstance(trained, QuarterTurns)
    assert not set(trained.source.class_names) & set(measured.class_names)
    assert len(trained.source) + len(measured) == len(upright)
    assert set(measured.class_names) <= set(upright.class_names)
    pictures = {upright.read(i) for i in range(len(upright))}
    assert all(measured.read(i) in pictures for i in range(0, len(measured), 50))
    plain, same = cells.search_parts(upright)
    assert (plain.class_names, same.class_names) == (trained.source.class_names, measured.class_names)


@pytest.mark.parametrize(
    ("classes", "shares", "expected"), [(100, 1, 56), (50, 1, 50), (49, 4, 48), (3, 16, 56)]
)
def test_the_search_takes_as_many_classes_as_half_of_them_allow(classes, shares, expected):
    batch = ml_collections.ConfigDict({"classes": 56, "images_per_class": 2})
    labels = np.append(np.repeat(np.arange(classes), 3), -1)
    assert cells.classes_that_fit(batch, labels, shares) == expected


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
    found.run(SETTING, 0)
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
    paths = sorted((ROOT / cells.RESULTS / "cells").glob("*/*.json"))
    assert len(paths) >= 573
    for path in paths:
        cell = json.loads(path.read_text())["cell"]
        fields = {field.name: cell[field.name] for field in dataclasses.fields(cells.Setting)}
        outcome = found.run(cells.Setting(**fields), cell["seed"], dataset=cell["dataset"], part=cell["part"])
        assert outcome is not None, path.name
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
    rows = [report.collect(found, name, cells.Setting(name, name), [0]) for name in ("batch_hard", "hap2s_e")]
    assert report.first_metric(rows) == "map@r"
    assert "map@r over batch_hard" in report.table(rows, rows[0])
    figure = report.dots({"": rows})
    report.write(found, "x", {"table": (rows, rows[0])}, figure, "")
    summary = json.loads((tmp_path / "x.json").read_text())
    assert summary["tables"]["table"]["hap2s_e"]["over_baseline"]["mean"] == 0.0


def test_a_rate_at_the_edge_of_the_grid_is_marked():
    rates = (0.0625, 0.125, *cells.LEARNING_RATE_FACTORS, 4.0, 8.0)
    rows = [report.Row(f"{rate}", SETTING.but(rate=rate), {}, (0,)) for rate in rates]
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
