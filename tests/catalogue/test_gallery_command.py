"""`python -m hap2s_jax.gallery`: every command of docs/gallery.md, and mistakes in one line."""

from __future__ import annotations

import pathlib
import re
import shlex
import shutil
import sys

import pytest
from pixel_encoder import PixelEncoder

from hap2s_jax import gallery
from hap2s_jax.catalogue import review
from hap2s_jax.catalogue.store import Store

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def folder(csv_file, tmp_path, monkeypatch):
    """A folder with photos.csv and two runs, whose encoders are the pixels, turned in two ways."""
    (tmp_path / "photos.csv").write_text(csv_file.read_text())
    for number, name in enumerate(("emoji", "animals")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "seed").write_text(str(number))

    def open_encoder(options, workdir=None):
        run = pathlib.Path(workdir or options.workdir)
        return PixelEncoder(run, int((run / "seed").read_text()))

    monkeypatch.setattr(gallery.commands, "open_encoder", open_encoder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _says(capsys, *arguments):
    code = gallery.main([*arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_every_command_of_the_page(folder, csv_file, capsys, monkeypatch):
    page = (ROOT / "docs" / "gallery.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    ours = [line[3:] for line in lines if line[:3] == ["python", "-m", "hap2s_jax.gallery"]]
    (folder / "new.png").write_bytes(
        pathlib.Path(csv_file.read_text().splitlines()[20].split(",")[0]).read_bytes()
    )
    served = []

    def reviewed_by_somebody(page_, **where):
        """Names the individuals by the page's own functions."""
        store, window = page_.store, page_.open()
        assert where == {"host": "127.0.0.1", "port": None}
        served.append(True)
        for _ in range(40):
            images, _ = page_.show(window)
            name = f"animal {int(re.search(r'<figcaption>.-(..).png', images)[1])}"
            kind = "another" if name in store.individuals() else "new"
            assert page_.decide(window, kind, "ann", name) == ""

    monkeypatch.setattr(review, "build", lambda page_, words: page_)
    monkeypatch.setattr(review, "launch", reviewed_by_somebody)
    printed = {}
    for line in ours:
        code, out, err = _says(capsys, *line)
        assert code == 0, (line, err)
        printed.setdefault(line[0], out)
    assert served
    assert {line[0] for line in ours} == set(gallery.SUBCOMMANDS)
    assert "48 images are new" in printed["add"]
    assert "new.png: nearest, animal 7" in printed["search"]
    assert "animal 4  2-04.png" in printed["list"]
    assert (
        "rank-1 on the reviewed images of known individuals, after: 35 of 35 (100.0%)" in printed["re_embed"]
    )
    assert len((folder / "animals.csv").read_text().splitlines()) > 40


def test_the_home_folder_is_meant_by_its_sign_everywhere(folder, capsys, monkeypatch):
    home = folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    shutil.copy(folder / "photos.csv", home)
    for line in (
        ["create", "~/animals", "--workdir=runs/emoji"],
        ["add", "~/animals", "--images=~/photos.csv"],
        *(["export", "~/animals", f"--output=~/out/all.{kind}"] for kind in ("csv", "npz")),
        ["export", "~/animals", "--output=~/out/all.csv", "--pictures=~/", "--overwrite"],
        ["add", "~/animals", "--images=~/out/all.npz"],
        ["re_embed", "~/animals", "--workdir=runs/animals"],
    ):
        assert gallery.main(line) == 0, (line, capsys.readouterr().err)
    assert {"animals", "out"} <= {path.name for path in home.iterdir()}
    assert len((home / "out" / "all.csv").read_text().splitlines()) == 49
    assert not (folder / "~").exists()


def test_mistakes_are_one_line(folder, capsys):
    assert gallery.main(["create", "animals", "--workdir=runs/emoji"]) == 0
    assert gallery.main(["add", "animals", "--images=photos.csv"]) == 0
    capsys.readouterr()
    before = Store("animals").tables.versions()
    cases = {
        ("gone", "x"): (2, "unknown subcommand 'gone'"),
        ("list", "nowhere"): (1, "there is no store nowhere"),
        ("list", "gs://bucket/animals"): (1, "gs://bucket/animals is on no disk"),
        ("create", "gs://bucket/animals", "--workdir=runs/emoji"): (1, "is on no disk"),
        ("list", "animals", "--where=x"): (1, "should be conditions"),
        ("add", "animals", "--images=photos.csv", "--workdir=runs/animals"): (1, "weights, pre-processing"),
        ("relabel", "animals", "--label=x"): (2, "name images with --image"),
        ("relabel", "animals", "--image", "none.png", "--label=x"): (1, "is no image of"),
        ("merge", "animals", "--label=x"): (1, "no image is named, or none fits"),
        ("split", "animals", "--where=path = ''"): (1, "split takes some of the images"),
        ("undo", "animals"): (1, "nothing is left to undo"),
        ("group", "animals"): (1, "group needs a threshold"),
        ("search", "animals", "--query", "x.png", "--threshold=far"): (1, "auto, none or a distance"),
        ("export", "animals", "--output=x.txt"): (1, "ends in one of .csv"),
        ("review", "animals", "--host=0.0.0.0"): (1, "shows pictures to others"),
        ("search", "animals", "--query", "0-03.png", "--k=0"): (1, "--k is 0; it should be at least 1"),
        ("history", "animals", "--k=-2"): (1, "--k is -2; it should be at least 1"),
    }
    for arguments, (expected, says) in cases.items():
        code, _, err = _says(capsys, *arguments)
        assert (code, err.count("\n")) == (expected, 1), err
        assert says in err
    for arguments, says in {
        ("list", "animals", "--wher=x"): "did you mean '--where'?",
        ("add", "animals"): "--images",
        ("export", "animals"): "--output",
        ("create", "animals"): "--workdir",
        ("re_embed", "animals"): "--workdir",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            gallery.main([*arguments])
        assert says in capsys.readouterr().err
    assert Store("animals").tables.versions() == before


@pytest.mark.slow
def test_what_writes_is_killed(tmp_path, monkeypatch):
    """In `add` and `relabel`; experiments/drill.py kills other commands too, as often as you like."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    drill = __import__("drills.gallery").gallery
    trials = drill.trials(3, tmp_path)
    for _ in range(3):
        next(trials).run()
    trials.close()
    assert "drills.gallery" in sys.modules
