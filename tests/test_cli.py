"""What users do wrong at the command line: one line, the right exit code, no traceback."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tomllib

import numpy as np
import pytest

import hap2s_jax
from hap2s_jax import cli, extras
from hap2s_jax.__main__ import COMMANDS
from hap2s_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]

# (arguments, exit code, what the line says). {tmp} is a writable folder, {file} a plain file.
CASES = {
    "no config": ([], 2, "give --config=FILE"),
    "no such config": (
        ["--config=configs/emojis.py"],
        2,
        "configs/emojis.py does not exist; there are: configs/",
    ),
    "two configs": (
        ["--config=configs/emoji.py", "--config", "configs/emoji.py:tiny", "--config.steps=3"],
        2,
        "--config is given 2 times",
    ),
    "unknown flag": (["--config=configs/emoji.py", "--wrkdir=x"], 2, "wrkdir"),
    "a number of processes alone": (
        ["--config=configs/emoji.py:tiny", "--num_processes=4"],
        2,
        "--num_processes has no effect alone; give --coordinator",
    ),
    "stray argument": (["--config=configs/emoji.py", "x"], 2, "unknown argument 'x'"),
    "a flag that is nearly one": (
        ["--config=configs/emoji.py", "--wrkdir=x"],
        2,
        "did you mean '--workdir'?",
    ),
    "a number that is none": (
        ["--config=emoji:tiny", "--join_timeout=soon"],
        2,
        "--join_timeout: 'soon' should be a whole number",
    ),
    "a config that imports what is not there": (
        ["--config={tmp}/imports.py"],
        2,
        "imports.py:1: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    "a config that is no Python": (["--config={tmp}/syntax.py"], 2, "syntax.py:1: SyntaxError"),
    "a config that imports recipes from where they were": (
        ["--config={tmp}/moved.py"],
        2,
        "from hap2s_jax.recipes import common",
    ),
    "a config that raises": (["--config={tmp}/raises.py"], 2, "raises.py:2: ZeroDivisionError"),
    "unknown shipped config": (
        ["--config=emojy"],
        2,
        "(did you mean 'emoji'?)",
    ),
    "unknown key of a config that builds on a shipped one": (
        ["--config={tmp}/mine.py", "--config.stepz=1"],
        2,
        "no key 'stepz'; did you mean --config.steps?",
    ),
    "unknown key": (
        ["--config=configs/emoji.py:tiny", "--config.optimizer.lerning_rate=1"],
        2,
        "no key 'optimizer.lerning_rate'; did you mean --config.optimizer.learning_rate?",
    ),
    "key of another level": (
        ["--config=configs/emoji.py:tiny", "--config.learning_rate=1"],
        2,
        "did you mean --config.optimizer.learning_rate?",
    ),
    "wrong type": (
        ["--config=configs/emoji.py:tiny", "--config.steps=many"],
        2,
        "--config.steps: must be a whole number",
    ),
    "unknown config argument": (["--config=configs/emoji.py:tinny"], 2, "did you mean 'tiny'"),
    "unknown loss": (["--config=configs/emoji.py:loss=hap2s_q"], 2, "unknown loss 'hap2s_q'"),
    "unknown loss by override": (
        ["--config=configs/emoji.py:tiny", "--config.loss.name=hap2s_q", "--workdir={tmp}/a"],
        1,
        "unknown loss 'hap2s_q'",
    ),
    "unknown model": (
        ["--config=configs/emoji.py:tiny", "--config.encoder.name=resnet11", "--workdir={tmp}/b"],
        1,
        "'resnet11'",
    ),
    "unknown optimizer": (
        ["--config=configs/emoji.py:tiny", "--config.optimizer.name=adamm", "--workdir={tmp}/c"],
        1,
        "did you mean 'adam",
    ),
    "unknown data set": (
        ["--config=configs/emoji.py:tiny", "--config.data.name=emojy", "--workdir={tmp}/d"],
        1,
        "emoji",
    ),
    "more classes than there are": (
        ["--config=configs/emoji.py:tiny", "--config.batch.classes=10000", "--workdir={tmp}/e"],
        1,
        "10000",
    ),
    "batch not divisible by devices": (
        ["--config=configs/emoji.py:tiny", "--config.batch.classes=3", "--workdir={tmp}/f"],
        1,
        "batch.classes x batch.images_per_class is 12; it should be 8 or 16, to divide over 8 devices",
    ),
    "more devices than there are": (
        ["--config=configs/emoji.py:tiny", "--config.num_devices=9", "--workdir={tmp}/g"],
        1,
        "num_devices is 9; it should be 1 to 8, the number of cpu devices",
    ),
    "workdir not writable": (
        ["--config=configs/emoji.py:tiny", "--workdir={file}/x"],
        1,
        "cannot be written",
    ),
    "unknown best metric": (
        ["--config=configs/emoji.py:tiny", "--config.checkpoint.best_metric=mapp", "--workdir={tmp}/h"],
        1,
        "(checkpoint.best_metric) 'mapp'; did you mean 'map@r'?",
    ),
    "missing data set": (
        ["--config=configs/cub.py", "--config.data.data_dir={tmp}/none", "--workdir={tmp}/i"],
        1,
        "CUB",
    ),
}

FILES = {
    "imports.py": "import no_such_module",
    "syntax.py": "def get_config(",
    "moved.py": "from configs import common",
    "raises.py": "def get_config():\n    return 1 / 0",
    "mine.py": "from configs import emoji\ndef get_config():\n    return emoji.get_config('tiny')",
    "file": "",
}

# One process imports the command once and forks for each case: importing costs more than the cases do.
_DRIVER = """
import importlib.util, json, os, sys, tempfile, warnings
warnings.simplefilter("ignore")
absent = set(sys.argv[1:])
class Absent:  # what is not installed
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] in absent else find_spec(name, *rest)
from hap2s_jax import __main__
if not absent:
    import hap2s_jax.run.run, hap2s_jax.run.config_file
results = {}
for name, arguments in json.load(sys.stdin).items():
    out = tempfile.TemporaryFile()
    child = os.fork()
    if child == 0:
        os.dup2(out.fileno(), 1); os.dup2(out.fileno(), 2)
        try:
            code = __main__.main(arguments)
        except SystemExit as exit:
            code = exit.code
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 99
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    out.seek(0)
    results[name] = os.waitstatus_to_exitcode(status), out.read().decode()
print(json.dumps(results))
"""


def _answers(asked, folder, *absent, cwd=ROOT):
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, *absent],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=600,
        env={**os.environ, "TFDS_DATA_DIR": str(folder), "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("cli")
    for name, text in FILES.items():
        (tmp / name).write_text(text)
    fill = {"tmp": str(tmp), "file": str(tmp / "file")}
    asked = {
        name: ["main", *(a.format(**fill) for a in arguments)] for name, (arguments, _, _) in CASES.items()
    }
    return _answers(asked, tmp)


def _one_line(output):
    assert "Traceback" not in output, output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert output.rstrip().endswith(errors[0]), "nothing may follow the error"
    return errors[0]


@pytest.mark.parametrize("name", CASES)
def test_one_line_that_says_what_to_do(answers, name):
    _, expected_code, says = CASES[name]
    code, output = answers[name]
    assert says in _one_line(output)
    assert code == expected_code


# (arguments, the extra that the line names) with the base install, and with everything but TensorFlow or the hub.
_BASE = {
    "main": (["main", "--config=emoji"], "train"),
    "evaluate": (["evaluate", "--workdir=x"], "train"),
    "embed": (["embed", "--workdir=x", "--images=x", "--output=x.npz"], "use"),
    "search": (["search", "--gallery=x.npz", "--query", "x.png"], "use"),
    "demo": (["demo", "--gallery=x.npz"], "demo"),
    "gallery": (["gallery", "list", "x"], "gallery"),
    "export": (["export", "--workdir=x", "--output=x"], "use"),
    "check_data": (["check_data", "--name=cub"], "train"),
    "pack": (["pack", "--data_dir=x", "--output=y"], "train"),
    "rehearse": (["rehearse", "--config=emoji"], "train,tpu"),
}


def test_what_is_not_installed_is_named_as_users_install_it_and_help_needs_nothing(tmp_path):
    asked = {name: arguments for name, (arguments, _) in _BASE.items()}
    asked |= {f"{name} --help": [name, "--help"] for name in COMMANDS} | {"list": []}
    absent = set(extras.MODULES["train"]) - {"absl", "orbax", "rich", "scipy"} | {
        "gradio",
        "libtpu",
        "lancedb",
    }
    answers = _answers(asked, tmp_path, *absent, cwd=tmp_path)
    for name, (_, extra) in _BASE.items():
        code, output = answers[name]
        assert f'pip install "hap2s_jax[{extra}]"' in _one_line(output)
        assert code == 1
    for name in COMMANDS:
        code, output = answers[f"{name} --help"]
        assert code == 0
        assert output.startswith("usage: ")
        assert name in answers["list"][1]
    assert list(tmp_path.iterdir()) == []


def test_without_the_hub_a_run_does_not_begin(tmp_path):
    asked = {"main": ["main", "--config=cub", "--workdir=run"]}
    code, output = _answers(asked, tmp_path, "huggingface_hub", cwd=tmp_path)["main"]
    line = _one_line(output)
    assert 'pip install "hap2s_jax[hub]"' in line
    assert "scratch" in line
    assert code == 1
    assert list(tmp_path.iterdir()) == []


def test_load_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "MODULES", {"use": ("no_such_module",)})
    with pytest.raises(UserError, match=r'hap2s_jax.load needs no_such_module.*"hap2s_jax\[use\]"'):
        hap2s_jax.load(tmp_path)


def test_extras_list_what_pyproject_asks_for():
    """A module for every requirement of every extra that the commands check."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brings = importlib.metadata.packages_distributions()

    def wanted(extra):
        names = [re.match(r"[\w.-]+(\[\w+\])?", line)[0] for line in project[extra]]
        for name in names:
            yield from wanted(name[10:-1]) if name.startswith("hap2s_jax[") else [name]

    def plain(name):
        return re.sub(r"[-_.]+", "-", name).lower().split("[")[0].removesuffix("-cpu")

    for extra, modules in extras.MODULES.items():
        known = {plain(dist) for module in modules for dist in brings.get(module, [module])}
        missing = {plain(name) for name in wanted(extra)} - known - {"jax"}  # jax[tpu]
        assert not missing, f"{extra}: {missing}"


@pytest.mark.parametrize(
    ("arguments", "decode", "config"),
    [
        ([], True, []),
        (["--no-decode", "--config=a.py:b"], False, ["--config=a.py:b"]),
        (
            ["--decode=false", "--config.steps", "-1", "--noconfig.flip"],
            False,
            ["--config.steps", "-1", "--noconfig.flip"],
        ),
        (["--config", "a.py", "--no_decode", "--decode"], True, ["--config", "a.py"]),
    ],
)
def test_switches_and_what_is_kept_for_the_config(arguments, decode, config):
    parser = cli.Parser("test", None)
    parser.add_config("")
    parser.add_switch("decode", default=True, help="")
    options = parser.read(arguments)
    assert (options.decode, options.config) == (decode, config)


def test_configs_are_found_by_name_and_changed_by_overrides(tmp_path, monkeypatch):
    from hap2s_jax.run import config_file

    monkeypatch.chdir(tmp_path)
    named = config_file.read(["--config=emoji:tiny", "--config.steps=9", "--noconfig.evaluate.flip"])
    assert (named.name, named.steps, named.evaluate.flip) == ("emoji-tiny", 9, False)
    assert config_file.read(["--config", "configs/emoji.py"]).name == "emoji"
    (tmp_path / "emoji").mkdir()  # no file, so not in the way
    assert config_file.read(["--config=emoji"]).name == "emoji"
    lines = list(config_file.listing())
    assert [line.split()[0] for line in lines] == sorted(
        path.stem for path in (ROOT / "configs").glob("*.py")
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--config.steps=1.5", "--config.steps: must be a whole number, found '1.5'"),
        ("--config.optimizer.learning_rate=fast", "learning_rate: must be a number, found 'fast'"),
        ("--config.evaluate.flip=perhaps", "flip: must be true or false, found 'perhaps'"),
        ("--config.stepz=3", "no key 'stepz'; did you mean --config.steps?"),
    ],
)
def test_an_override_of_the_wrong_kind_is_one_line(given, says):
    from hap2s_jax.run import config_file

    with pytest.raises(cli.UsageError) as caught:
        config_file.read(["--config=emoji", given])
    assert says in str(caught.value)


_STUBBORN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it in what they start in the background
sys.argv[0] = "hap2s"
import time
from hap2s_jax import cli
def work():
    with cli.signals.temporary_folder(), cli.signals.quiet():
        print("working", flush=True)
        for _ in range(60):
            try:
                time.sleep(1)
            except KeyboardInterrupt:
                if sys.argv[1] == "lingers":
                    cli.signals.notice()
                    print("closing", flush=True)
                    time.sleep(60)
                if sys.argv[1] != "swallows":
                    raise
sys.exit(cli.ended(work, "interrupted; the same command goes on"))
"""


def _stubborn(kind, temporary):
    """Work that is silenced, has a temporary folder, and takes a signal as `kind` says."""
    return subprocess.Popen(
        [sys.executable, "-c", _STUBBORN, kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
    )


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("kind", ["raises", "swallows"])
def test_a_signal_ends_the_work_with_one_line_even_where_it_is_swallowed(number, expected, kind, tmp_path):
    with _stubborn(kind, tmp_path) as child:
        assert child.stdout.readline() == "working\n"
        child.send_signal(number)
        _, errors = child.communicate(timeout=50)  # the work alone would take longer
    assert (child.returncode, errors) == (expected, "error: interrupted; the same command goes on\n")
    assert not [*tmp_path.iterdir()]


def test_who_asks_twice_gets_one_line_and_waits_no_longer(tmp_path):
    with _stubborn("lingers", tmp_path) as child:
        for _ in ("working", "closing"):
            child.stdout.readline()
            child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=50)
    assert (child.returncode, errors) == (130, "error: interrupted; the same command goes on\n")
    assert not [*tmp_path.iterdir()]


def test_a_signal_ends_a_command_while_it_loads():
    """Before jax, flags or anything else is there."""
    code = "import sys; sys.argv[0] = 'hap2s'; import hap2s_jax.distributed.signals as s, os; os.kill(os.getpid(), 15)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (143, "error: interrupted\n")


def test_a_signal_at_the_very_end_changes_nothing():
    """When all is done, and Python has dropped the handlers of signals."""
    code = """
import sys; sys.argv[0] = "hap2s"
import hap2s_jax.distributed.signals, os
class Late:
    def __del__(self, kill=os.kill, me=os.getpid()):
        kill(me, 2), kill(me, 15)
late = Late()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_is_silent():
    command = f"{sys.executable} -m hap2s_jax | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_the_work_goes_on_without_a_reader(tmp_path, unbuffered):
    code = r"""
import pathlib, sys, time
from hap2s_jax import cli

def work():
    for number in range(30):
        print("line", number, "of caf\udcff" + 1000 * "x", flush=number % 2 == 0)
        print("noise", file=sys.stderr)
        time.sleep(0.01)
    pathlib.Path(sys.argv[1]).write_text("done")

sys.exit(cli.ended(work))
"""
    (tmp_path / "work.py").write_text(code)
    command = f"{sys.executable} {tmp_path}/work.py {tmp_path}/result 2>&1 | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("line 0 of caf\\udcff")
    assert (tmp_path / "result").read_text() == "done"


def test_the_version_stands_in_one_place():
    assert f"\nversion: {hap2s_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {hap2s_jax.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_too_little_memory_and_very_long_texts_are_one_line(capsys):
    def works():
        np.empty(2**60, np.uint8)

    assert cli.ended(works) == 1
    assert "too little memory: Unable to allocate" in capsys.readouterr().err
    parser = cli.Parser("x", "")
    parser.add_argument("--k", type=int)
    for given in ("9" * 5000, str(2**70), "x" * 10_000):
        with pytest.raises(SystemExit):
            parser.read([f"--k={given}"])
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert len(printed) < 1000
        assert printed.endswith("should be a whole number\n")
