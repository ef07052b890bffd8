import getpass
import json
import re
import socket

import jax
import numpy as np
import pytest

from hap2s_jax.reporting import environment


def test_facts_are_json_and_true() -> None:
    facts = json.loads(json.dumps(environment.describe()))
    assert facts["packages"]["jax"] == jax.__version__
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["backend"] == "cpu"
    assert facts["devices"] == {"cpu": 8}
    assert facts["processes"] == 1
    assert facts["cpus"] >= 1
    assert facts["commit"] is None or re.fullmatch(r"[0-9a-f]{40,64}(\+changes)?", facts["commit"])
    assert f"jax {jax.__version__} on 8 x cpu" in environment.summary(facts)


def test_neither_user_nor_machine_is_named() -> None:
    values = json.dumps(environment.describe())
    assert socket.gethostname() not in values
    user = getpass.getuser()
    assert f'"{user}"' not in values
    assert f"/{user}" not in values


def test_peak_memory_is_in_gib() -> None:
    peaks = environment.peak_memory()
    assert 0.05 < peaks["host_gib"] < 1024


def test_an_installed_copy_has_no_commit(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment._commit() is None


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_container_s_share_of_the_cores(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert environment._granted_cores(tmp_path) == cores
