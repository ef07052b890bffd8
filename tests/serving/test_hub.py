"""`hf://user/model` and `export --push`: against a hub that is a folder, laid out as huggingface_hub's cache."""

from __future__ import annotations

import fnmatch
import json
import pathlib
import shutil

import numpy as np
import pytest

import hap2s_jax
from hap2s_jax import export
from hap2s_jax.errors import UserError
from hap2s_jax.serving import hub

library = pytest.importorskip("huggingface_hub")


class FakeHub:
    """Models by name, each a folder."""

    def __init__(self, root):
        self.root, self.asked, self.made, self.failing = root, [], [], None

    def snapshot_download(self, name, *, allow_patterns):
        """Links to blobs, as in the cache; `*` also matches slashes there."""
        self._may_fail()
        self.asked.append((name, allow_patterns))
        snapshot, blobs = self.root / "cache" / "snapshots" / "0", self.root / "cache" / "blobs"
        shutil.rmtree(self.root / "cache", ignore_errors=True)
        blobs.mkdir(parents=True)
        for file in sorted(f for f in (self.root / name).rglob("*") if f.is_file()):
            inside = file.relative_to(self.root / name)
            if any(fnmatch.fnmatch(inside.as_posix(), pattern) for pattern in allow_patterns):
                blob = blobs / f"{len([*blobs.iterdir()]):040x}"
                shutil.copyfile(file, blob)
                (snapshot / inside).parent.mkdir(parents=True, exist_ok=True)
                (snapshot / inside).symlink_to(blob)
        return str(snapshot)

    def HfApi(self):
        return self

    def whoami(self):
        self._may_fail()

    def create_repo(self, name, *, private, exist_ok):
        assert exist_ok
        self.made.append((name, private))

    def upload_folder(self, *, repo_id, folder_path, commit_message, delete_patterns):
        assert delete_patterns == "checkpoints/**"
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def _may_fail(self):
        if self.failing is not None:
            raise self.failing


@pytest.fixture
def there(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    for name in ("snapshot_download", "HfApi"):
        monkeypatch.setattr(library, name, getattr(fake, name))
    return fake


@pytest.fixture
def workdir(run, tmp_path):
    """The run with a card, and with places of this machine in its config."""
    made = shutil.copytree(run.workdir, tmp_path / "run")
    config = json.loads((made / "config.json").read_text())
    config["data"]["data_dir"] = config["compilation_cache"] = str(tmp_path)
    (made / "config.json").write_text(json.dumps(config))
    results = {"weights_of_step": 3, "test": {"mAP": 0.41, "rank-1": 0.5, "map@r": 0.2}}
    (made / "results.json").write_text(json.dumps(results))
    snippet = "hap2s_jax.load(WORKDIR)(PATHS)"
    (made / "model_card.md").write_text(
        f"# emoji\n\n{snippet}\n\n```json\n{json.dumps(config)}\n```\n\n</details>\n"
    )
    return made


def test_what_is_pushed_is_loaded_again(there, workdir, folder, tmp_path, capsys):
    ours = hap2s_jax.load(workdir)
    assert export.main([f"--workdir={workdir}", "--push=ann/animals-1.0", "--private"]) == 0
    assert "hf://ann/animals-1.0" in capsys.readouterr().out
    assert there.made == [("ann/animals-1.0", True)]
    pushed = there.root / "ann" / "animals-1.0"
    files = {file.relative_to(pushed).parts[0] for file in pushed.rglob("*")}
    assert files == {"README.md", "config.json", "checkpoints"}
    assert not any(str(tmp_path).encode() in f.read_bytes() for f in pushed.rglob("*") if f.is_file())
    card = library.ModelCard((pushed / "README.md").read_text())
    assert (card.data.library_name, card.data.pipeline_tag) == ("hap2s_jax", "image-feature-extraction")
    assert {e.metric_type: e.metric_value for e in card.data.eval_results} == {"mAP": 0.41, "rank-1": 0.5}
    assert 'hap2s_jax.load("hf://ann/animals-1.0")(PATHS)' in card.text
    # What lies there beside is left alone.
    for name in ("evil.pkl", "evil.py"):
        (pushed / name).write_text("raise SystemExit")
    theirs = hap2s_jax.load("hf://ann/animals-1.0")
    assert {f.name for f in theirs.workdir.iterdir()} == {"config.json", "checkpoints"}
    assert (theirs.step, theirs.fingerprint) == (3, ours.fingerprint)
    np.testing.assert_array_equal(theirs(folder[1][:3]), ours(folder[1][:3]))


def test_a_model_of_the_hub_is_a_stranger(there, workdir, tmp_path):
    pushed = there.root / "eve" / "model"
    shutil.copytree(workdir, pushed)
    config = json.loads((pushed / "config.json").read_text())
    config["encoder"]["name"] = "no_such_code:Net"
    (pushed / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="own_code"):
        hap2s_jax.load("hf://eve/model")


def test_weights_that_the_card_is_not_of_are_not_pushed(there, workdir, capsys):
    (workdir / "model_card.md").rename(workdir / "away.md")
    assert export.main([f"--workdir={workdir}", "--push=ann/animals"]) == 1
    assert "has no model_card.md yet" in capsys.readouterr().err
    (workdir / "away.md").rename(workdir / "model_card.md")
    assert export.main([f"--workdir={workdir}", "--push=ann/animals", "--checkpoint=6"]) == 1
    assert "is of step 3" in capsys.readouterr().err
    assert there.made == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("GatedRepoError", "is gated: ask for access"),
        ("RepositoryNotFoundError", "there is no hf://ann/animals, or it is private"),
        ("LocalTokenNotFoundError", "no token for the hub; `hf auth login`"),
        ("OfflineModeIsEnabled", "not in this machine's cache, and the hub cannot be reached"),
        ("LocalEntryNotFoundError", "not in this machine's cache, and the hub cannot be reached"),
        (None, "the hub says: 500"),
    ],
)
def test_errors_are_one_line(there, workdir, capsys, error, says):
    from huggingface_hub import errors

    kind = RuntimeError if error is None else getattr(errors, error)
    there.failing = kind.__new__(kind, "500 Server Error\nRequest ID: 7")
    with pytest.raises(UserError, match=says):
        hap2s_jax.load("hf://ann/animals")
    assert export.main([f"--workdir={workdir}", "--push=ann/animals"]) == 1
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_names(there, workdir, capsys):
    for name in ("hf://", "hf://animals", "hf://a/b/c", "hf://a/../b", "hf://a/b c"):
        with pytest.raises(UserError, match="should read hf://user/model"):
            hub.fetch(name)
    assert export.main([f"--workdir={workdir}", "--push=animals"]) == 1
    assert "should read user/model" in capsys.readouterr().err
    assert export.main([f"--workdir={workdir}"]) == 2
    assert pathlib.Path(workdir).is_dir()
