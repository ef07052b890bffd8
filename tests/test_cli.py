"""What users do wrong at the command line: one line, the right exit code, no traceback."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

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
        "--num_processes is of no use alone; give --coordinator",
    ),
    "stray argument": (["--config=configs/emoji.py", "x"], 2, "unknown argument 'x'"),
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
    "wrong type": (["--config=configs/emoji.py:tiny", "--config.steps=many"], 2, "--config.steps=many"),
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
        "a global batch of 12 images does not divide over 8 devices",
    ),
    "more devices than there are": (
        ["--config=configs/emoji.py:tiny", "--config.num_devices=9", "--workdir={tmp}/g"],
        1,
        "num_devices is 9, but there are 8 cpu devices",
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

# One process imports the command once and forks for each case: importing costs more than the cases do.
_DRIVER = """
import io, json, os, sys, tempfile, warnings
warnings.simplefilter("ignore")
from hap2s_jax import cli, main
main._define_flags()
results = {}
for name, arguments in json.load(sys.stdin).items():
    out = tempfile.TemporaryFile()
    child = os.fork()
    if child == 0:
        os.dup2(out.fileno(), 1); os.dup2(out.fileno(), 2)
        sys.argv = ["hap2s_jax.main", *arguments]
        cli.start(main._main)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    out.seek(0)
    results[name] = os.waitstatus_to_exitcode(status), out.read().decode()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("cli")
    (tmp / "file").write_text("")
    fill = {"tmp": str(tmp), "file": str(tmp / "file")}
    asked = {name: [a.format(**fill) for a in arguments] for name, (arguments, _, _) in CASES.items()}
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        env={**os.environ, "TFDS_DATA_DIR": str(tmp)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_one_line_that_says_what_to_do(answers, name):
    _, expected_code, says = CASES[name]
    code, output = answers[name]
    assert "Traceback" not in output, output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output
    assert says in errors[0]
    assert output.rstrip().endswith(errors[0]), "nothing may follow the error"
    assert code == expected_code
