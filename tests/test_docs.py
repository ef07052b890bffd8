"""What the README and the pages under docs/ show is what runs."""

from __future__ import annotations

import importlib.util
import pathlib
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import yaml

from hap2s_jax import main
from hap2s_jax.data import bucket
from hap2s_jax.run import config_file

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*.py") if "def get_config(arg" in p.read_text())


def _blocks(page: pathlib.Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def _commands() -> list[tuple[str, str]]:
    """Every command line of the pages and of the configs' docstrings."""
    found = []
    for page in PAGES:
        found += [(page.name, line) for block in _blocks(page, "bash") for line in block.splitlines()]
    for config in CONFIGS:
        docstring = config.read_text().split('"""')[1]
        found += [(config.name, line) for line in re.findall(r"^    (python .*)$", docstring, re.MULTILINE)]
    return found


def test_the_python_of_the_pages_runs():
    """README.md and docs/evaluation.md in one process; the other pages have tests of their own."""
    blocks = [
        block for page in ("README.md", "docs/evaluation.md") for block in _blocks(ROOT / page, "python")
    ]
    assert len(blocks) == 5
    subprocess.run([sys.executable, "-c", "\n".join(blocks)], check=True, timeout=300)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_commands_name_modules_configs_and_keys_that_exist(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from hap2s_jax.run.config import flatten

    seen = 0
    for page, line in _commands():
        words = shlex.split(line.split("&&")[-1].partition("#")[0])
        if "-m" not in words or not any("python" in w for w in words):
            continue
        module = words[words.index("-m") + 1]
        assert importlib.util.find_spec(module) is not None, f"{page}: no module {module}"
        for flag in (w for w in words if w.startswith("--config=")):
            path, _, arg = flag.removeprefix("--config=").partition(":")
            spec = importlib.util.spec_from_file_location("config_of_a_page", ROOT / path)
            assert spec is not None, f"{page}: {path}"
            config_module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(config_module)
            keys = flatten(config_module.get_config(arg or None))
            overrides = [
                w.removeprefix("--config.").partition("=")[0] for w in words if w.startswith("--config.")
            ]
            assert set(overrides) <= set(keys), f"{page}: {line}"
            seen += 1
    assert seen >= len(CONFIGS)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_every_config_names_its_own_command(config):
    assert f"--config=configs/{config.name}" in config.read_text().split('"""')[1]


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    extras = re.findall(r'pip install -q -e "(\.\[[^"]+\])"', (ROOT / "README.md").read_text())
    assert ".[train,dev]" in extras
    assert '"$python" -m pip install -q -e ".[train,dev]"' in script
    assert "-m hap2s_jax.main --config=configs/emoji.py" in script
    assert "-m pytest" in script


def test_the_names_for_those_who_come_from_elsewhere_exist():
    from hap2s_jax import losses
    from hap2s_jax.run.config import flatten
    from hap2s_jax.run.schema import default_config

    text = (ROOT / "docs" / "coming_from.md").read_text()
    names = set(re.findall(r"`(hap2s_jax(?:\.\w+)+)`", text))
    assert len(names) > 15
    for name in names:
        pkgutil.resolve_name(name)
    assert set(re.findall(r"`(\w+_loss)`", text)) <= set(dir(losses))
    keys = {*flatten(default_config()), "loss"}
    assert set(re.findall(r"`config\.([\w.]+)`", text)) <= keys


def test_every_page_of_the_site_is_in_its_contents():
    contents = (ROOT / "docs" / "site" / "mkdocs.yml").read_text()
    for page in [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs" / "notebooks").glob("*.py")]:
        assert f": {page.relative_to(ROOT / 'docs')}\n" in contents


def test_the_recipes_for_pods_name_flags_keys_and_extras_that_exist(capsys, monkeypatch):
    """As far as they can be tried without a cluster: the job file is parsed, the image installs what there is."""
    monkeypatch.syspath_prepend(str(ROOT))
    page = ROOT / "docs" / "pods.md"
    (job,) = map(yaml.safe_load, _blocks(page, "yaml"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    started = [
        shlex.split(line)
        for block in _blocks(page, "console")
        for line in block.splitlines()
        if "hap2s_jax.main" in line and line.count("'") % 2 == 0
    ]
    with pytest.raises(SystemExit):
        main.main(["--help"])
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    commands = [words[words.index("-m") + 1 :] for words in [container["command"], *started]]
    assert len(commands) >= 2
    for module, *flags in commands:
        assert module == "hap2s_jax.main"
        own = [flag for flag in flags if flag.startswith("--") and not flag.startswith("--config")]
        assert {flag.partition("=")[0] for flag in own} <= known
        config_file.read([flag for flag in flags if flag.startswith("--config")])
        for flag in flags:
            if "gs://" in flag:
                bucket.BucketPath(flag.partition("=")[2])
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (image,) = _blocks(page, "dockerfile")
    for text in (image, "\n".join(_blocks(page, "console"))):
        (installed,) = re.findall(r'"\.\[([\w,]+)\]"', text)
        assert {"train", "tpu", "gcs"} <= set(installed.split(",")) <= set(extras)
