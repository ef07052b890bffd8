"""Somebody else's working directory: which keys of its config count, and that no code of its choice runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import hap2s_jax
from hap2s_jax import embed, evaluate, search
from hap2s_jax.data.tf import tfds_source
from hap2s_jax.errors import UserError
from hap2s_jax.models import own
from hap2s_jax.run import config as configs
from hap2s_jax.run import foreign, initial_weights


@pytest.fixture
def workdir(run, tmp_path):
    """A copy whose config a test may change."""
    return shutil.copytree(run.workdir, tmp_path / "theirs")


def _change(workdir, **changes):
    config = configs.load(workdir)
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    configs.save(config, workdir)


def _other(value):
    """A value of the same type, and of an evil kind where there is one."""
    kinds = {bool: lambda v: not v, int: lambda v: v + 7, float: lambda v: v + 0.25, list: lambda v: [9, 9]}
    return kinds.get(type(value), lambda v: "/nowhere/evil:Net")(value)


def _counts(key):
    return any(key == name or key.startswith(f"{name}.") for name in foreign.KEYS)


def test_every_key_that_does_not_count_changes_nothing(run, workdir):
    before, expected = configs.flatten(configs.load(workdir)), foreign.load(workdir)
    others = {key: _other(value) for key, value in before.items() if not _counts(key)}
    assert {"compilation_cache", "num_devices", "loss.name", "data.cache_bytes", "batch.classes"} <= set(
        others
    )
    assert not {"pretrained.source", "pretrained.cache_dir"} & set(foreign.KEYS)
    path = workdir / configs.FILE_NAME
    config = json.loads(path.read_text())
    for key, value in others.items():
        *sections, leaf = key.split(".")
        section = config
        for name in sections:
            section = section[name]
        section[leaf] = value
    path.write_text(json.dumps(config | {"a key that is not known": {"evil": 1}}))
    assert all(configs.flatten(configs.load(workdir))[key] == value for key, value in others.items())
    assert foreign.load(workdir).to_dict() == expected.to_dict()
    image = run.source.read(0)
    np.testing.assert_array_equal(hap2s_jax.load(workdir)(image), hap2s_jax.load(run.workdir)(image))
    found = evaluate.from_workdir(str(workdir))
    np.testing.assert_array_equal(found.embeddings, evaluate.from_workdir(str(run.workdir)).embeddings)


def test_every_key_that_counts_is_there(workdir):
    known = configs.flatten(configs.load(workdir))
    assert all(
        any(
            key == name or key.startswith(f"{name}.")
            for key in [*known, "data.options", "data.sources", "evaluate.on"]
        )
        for name in foreign.KEYS
    )
    places = [key for key in known if key.endswith(("_dir", "_cache", "source")) and _counts(key)]
    assert sorted(places) == sorted(foreign.PLACES)


@pytest.mark.parametrize("command", ["embed", "search", "export", "evaluate", "calibrate"])
def test_a_cache_of_programs_that_a_config_names_is_not_used(run, folder, workdir, tmp_path, command):
    planted = tmp_path / "planted"
    planted.mkdir()
    _change(workdir, compilation_cache=str(planted))
    image, vectors = str(folder[1][0]), tmp_path / "x.npz"
    arguments = {
        "embed": ["embed", f"--workdir={workdir}", f"--images={folder[0]}", f"--output={vectors}"],
        "search": ["search", f"--gallery={vectors}", "--query", image],
        "export": ["export", f"--workdir={workdir}", f"--output={tmp_path / 'out'}", "--formats=stablehlo"],
        "evaluate": ["evaluate", f"--workdir={workdir}", "--no_cluster"],
        "calibrate": ["search", f"--workdir={workdir}", "--calibrate"],
    }[command]
    if command == "search":
        embed.embed_images(hap2s_jax.load(workdir), folder[0], vectors, show_progress=False)
    before = jax.config.values["jax_compilation_cache_dir"]
    with pytest.MonkeyPatch.context() as patch:
        # As where the user has set no cache: that of the home folder.
        patch.delenv("JAX_COMPILATION_CACHE_DIR")
        patch.setenv("HOME", str(tmp_path / "home"))
        try:
            module = __import__(f"hap2s_jax.{arguments[0]}", fromlist=["main"])
            assert module.main(arguments[1:]) == 0
            assert jax.config.values["jax_compilation_cache_dir"] == str(
                tmp_path / "home" / ".cache" / "hap2s_jax" / "xla"
            )
        finally:
            jax.config.update("jax_compilation_cache_dir", before)
    assert not list(planted.iterdir())


EVIL = """
import pathlib
pathlib.Path("ran").touch()
from flax import linen as nn
class Net(nn.Module): pass
def make(**options): return Net()
"""
COMMANDS = {
    "embed": ["--images=.", "--output=x.npz"],
    "export": ["--output=out"],
    "evaluate": [],
    "search": ["--calibrate"],
    "load": [],
}


def test_no_module_is_imported_without_consent(workdir, tmp_path):
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text(EVIL)
    (tmp_path / "pack" / "net.py").write_text(EVIL)
    program = "import sys, hap2s_jax, importlib\nfrom hap2s_jax.errors import UserError\n"
    program += (
        "for name in ('evil:Net', 'evil:make', 'pack.net:Net', 'os:system', '.evil:Net', ':', 'evil:'):\n"
    )
    program += "    import json; c = json.load(open('theirs/config.json')); c['encoder']['name'] = name\n"
    program += "    json.dump(c, open('theirs/config.json', 'w'))\n"
    program += f"    for command, more in {COMMANDS!r}.items():\n"
    program += "        if command == 'load':\n"
    program += "            try: hap2s_jax.load('theirs'); assert False, name\n"
    program += "            except UserError as e: assert '--own_code' in str(e), e\n"
    program += "        else:\n"
    program += "            module = importlib.import_module(f'hap2s_jax.{command}')\n"
    program += "            assert module.main(['--workdir=theirs', *more]) == 1, (name, command)\n"
    program += "assert not {'evil', 'pack'} & set(sys.modules)\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("--own_code") == 7 * (len(COMMANDS) - 1)
    assert done.stderr.count("\n") == 7 * (len(COMMANDS) - 1), done.stderr
    assert not (tmp_path / "ran").exists()


def test_what_the_program_has_imported_needs_no_consent_if_it_is_a_class(monkeypatch):
    own.check_consent("flax.linen:Dense")
    for name in ("flax.linen:relu", "os:system", "flax.linen:nothing", "flax:linen", "tests.evil:Net"):
        with pytest.raises(UserError, match="--own_code"):
            own.check_consent(name)
    assert "tests.evil" not in sys.modules
    # An attribute that a module would import only now.
    monkeypatch.delitem(vars(hap2s_jax), "load", raising=False)
    monkeypatch.setattr(hap2s_jax, "__getattr__", lambda name: pytest.fail("was asked"))
    with pytest.raises(UserError, match="no class of flax modules"):
        own.check_consent("hap2s_jax:load")


def test_where_images_lie_is_only_read_and_only_here(run, folder, workdir, capsys):
    """`evaluate --workdir` looks for the run's images where the run had them; nothing is written there."""
    root = folder[0]
    before = sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*"))
    _change(workdir, **{"data.name": "folder", "data.data_dir": str(root)})
    assert len(evaluate.from_workdir(str(workdir)).labels) > 0
    assert sorted((p, p.stat().st_mtime_ns) for p in root.rglob("*")) == before
    for key in foreign.PLACES:
        _change(
            workdir, **{"data.data_dir": None, "data.noise.foreign_dir": None} | {key: "gs://evil/bucket"}
        )
        for module, more in ((evaluate, []), (search, ["--calibrate"])):
            assert module.main([f"--workdir={workdir}", *more]) == 1
            error = capsys.readouterr().err
            assert f"{key} is gs://evil/bucket, which is not on this machine" in error
            assert error.count("\n") == 1
        # Who reads none of them does not mind.
        assert hap2s_jax.load(workdir).config.data.data_dir is None
    _change(workdir, **{"data.data_dir": "gs://evil/bucket", "data.noise.foreign_dir": None})
    assert foreign.load(workdir, data_dir=str(root)).data.data_dir == str(root)


def test_a_builder_s_name_does_not_lead_to_prepared_files_that_name_code(tmp_path, monkeypatch):
    planted = tmp_path / "cuhk03" / "evil" / "1.0.0"
    planted.mkdir(parents=True)
    (tmp_path / "evil_features.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    (planted / "features.json").write_text(json.dumps({"pythonClassName": "evil_features.Image"}))
    info = {"name": "cuhk03", "version": "1.0.0", "fileFormat": "tfrecord", "moduleName": "evil_features"}
    (planted / "dataset_info.json").write_text(json.dumps(info))
    for name in ("cuhk03/evil", "cuhk03/evil:1.0.0", "cuhk03/detected:1.0.0"):
        with pytest.raises(UserError, match="there is no such data set"):
            tfds_source.read_tfds(name, tmp_path)
    assert "evil_features" not in sys.modules


def test_first_weights_of_another_run_need_none_of_its_code(run, workdir):
    """`pretrained.source` may name a run whose encoder is code of its own: its arrays are all that is read."""
    _change(workdir, **{"encoder.name": "evil:Net", "compilation_cache": "/nowhere"})
    state = run.job.initial_state()
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats}
    _, report = initial_weights.load(str(workdir), run.job.learner.encoder, variables)
    assert report.taken > 0
    assert "evil" not in sys.modules


def test_a_batch_has_no_more_pixels_than_a_machine_holds(workdir):
    for size, wanted, batch in (((64, 64), 32, 32), ((2048, 2048), 10**9, 2)):
        _change(workdir, **{"data.image_size": size, "evaluate.batch_size": wanted})
        assert foreign.load(workdir).evaluate.batch_size == batch


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "it holds a list"),
        ("3", "it holds a int"),
        ("[" * 100_000, "nested too deeply"),
        ('{"data": 3, "evaluate": [], "encoder": null}', "should be a section"),
        ('{"encoder": 1.5}', "encoder is 1.5; it should be a section"),
        ('{"a.b": {"c": 1}}', "cannot be read"),
        ('{"encoder": {"name": ["resnet10"]}}', "encoder.name is "),
        (
            '{"encoder": {"name": "resnet10"}, "data": {"image_size": 64}}',
            "data.image_size is 64; it should be 2 values",
        ),
        ('{"encoder": {"name": "resnet10"}, "data": {"image_size": [64, -1]}}', "should be height"),
        ('{"encoder": {"name": "resnet10"}, "evaluate": {"enlarge": NaN}}', "should be a finite number"),
        ('{"encoder": {"name": "resnet10"}, "evaluate": {"batch_size": 1.5}}', "should be a whole number"),
        ('{"encoder": {"width": 1180591620717411303424}}', "should be a whole number of at most 64 bits"),
        ('{"seed": {"a": {"b": 1}, "c": "%s"}}' % ("x" * 10_000), "seed is {'a': {'b': 1}"),
        ('{"evaluate": {"distance": "%s"}}' % ("x" * 10_000), "known: cosine, euclidean"),
        ('{"encoder": {"pooling": {"a": 1}}}', "encoder.pooling is {'a': 1}; it should be text"),
    ],
)
def test_a_config_that_is_none_is_one_line(workdir, text, says):
    (workdir / configs.FILE_NAME).write_text(text)
    with pytest.raises(UserError) as caught:
        hap2s_jax.load(workdir)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
