"""`python -m hap2s_jax.embed`: every readable image once, also after an interruption."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, features

import hap2s_jax
from hap2s_jax import embed, evaluate, search
from hap2s_jax.data.readers.own import read_folder
from hap2s_jax.errors import UserError
from hap2s_jax.reporting.atomic import holding
from hap2s_jax.serving import joined, vectors
from hap2s_jax.serving.listing import list_images
from hap2s_jax.serving.parts import Part, Parts
from hap2s_jax.serving.trained import TrainedEncoder
from tests.data import trees


@pytest.fixture(scope="module")
def encoder(run):
    return hap2s_jax.load(run.workdir)


@pytest.fixture
def spoilt(folder, tmp_path):
    """The folder of images, with files among them that are none."""
    root = shutil.copytree(folder[0], tmp_path / "images")
    (root / "a text.jpg").write_text("no image")
    (root / "class 0000" / "empty.png").write_bytes(b"")
    (root / "notes.txt").write_text("not even called one")
    return root


def _expected(folder, reference):
    """By path; the listing is sorted by path, the images of the source are not."""
    return {
        path.relative_to(folder[0]).as_posix(): row for path, row in zip(folder[1], reference, strict=True)
    }


def _check(file, folder, reference):
    found, expected = vectors.read(file), _expected(folder, reference)
    assert sorted(found.paths.tolist()) == sorted(expected)
    np.testing.assert_allclose(found.embeddings, [expected[path] for path in found.paths], atol=1e-5)
    assert found.embeddings.dtype == np.float32
    for row, path in enumerate(found.paths):
        assert found.class_of(row) == path.split("/")[0]
    return found


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_the_command(run, spoilt, folder, reference, tmp_path, capsys, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    output = tmp_path / f"vectors{suffix}"
    arguments = [f"--workdir={run.workdir}", f"--images={spoilt}", f"--output={output}"]
    assert embed.main(arguments) == 0
    found = _check(output, folder, reference)
    assert found.model["fingerprint"] == hap2s_jax.load(run.workdir).fingerprint
    listed = (tmp_path / f"{output.name}.unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["a text.jpg", "class 0000/empty.png"]
    assert not list(tmp_path.glob("*.parts"))
    printed = capsys.readouterr()
    assert "45 embeddings of 128 numbers" in printed.out
    assert "47/47" in printed.err
    assert embed.main(arguments) == 0
    assert "already holds these embeddings" in capsys.readouterr().out


def test_evaluate_reads_the_file(encoder, folder, tmp_path, capsys):
    embed.embed_images(encoder, folder[0], tmp_path / "x.npz", show_progress=False)
    assert evaluate.main([f"--embeddings={tmp_path / 'x.npz'}", "--no_cluster"]) == 0
    assert "recall@1" in capsys.readouterr().out


def test_interrupted_and_run_again(encoder, spoilt, folder, reference, tmp_path, monkeypatch):
    calls = []
    preprocess = TrainedEncoder.preprocess

    def counted(self, image, **options):
        calls.append(image)
        if len(calls) == 41:
            raise KeyboardInterrupt
        return preprocess(self, image, **options)

    output = tmp_path / "vectors.npz"

    def make():
        embed.embed_images(
            encoder, spoilt, output, batch_size=8, workers=1, rows_per_part=8, show_progress=False
        )

    with monkeypatch.context() as patch:
        patch.setattr(TrainedEncoder, "preprocess", counted)
        with pytest.raises(KeyboardInterrupt):
            make()
    assert not output.exists()
    done = Parts(output, {}).done
    assert 8 <= done <= 40
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(TrainedEncoder, "preprocess", lambda *a, **k: calls.append(1) or preprocess(*a, **k))
        make()
    assert len(calls) == 47 - done
    _check(output, folder, reference)


def test_damaged_parts_are_made_again(tmp_path, capsys):
    parts = Parts(tmp_path / "x.npz", {})
    for stop in (2, 4, 6):
        rows = np.arange(stop - 2, stop)
        parts.add(stop, Part(np.ones((2, 3), np.float32), rows, np.zeros(0, int), np.zeros(0, str)))
    assert Parts(tmp_path / "x.npz", {}).done == 6
    damaged = sorted(parts.folder.glob("*.npz"))[1]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert Parts(tmp_path / "x.npz", {}).done == 2
    assert f"warning: {damaged} is damaged" in capsys.readouterr().err


def test_parts_of_something_else_are_not_gone_on_with(encoder, spoilt, tmp_path, run):
    output = tmp_path / "vectors.npz"
    Parts(output, {"weights": "others", "images": "x", "folder": str(spoilt)})
    with pytest.raises(
        UserError, match="unfinished file that differs in its weights and images; give --overwrite"
    ):
        embed.embed_images(encoder, spoilt, output, show_progress=False)
    embed.embed_images(encoder, spoilt, output, overwrite=True, show_progress=False)
    assert output.exists()


def test_another_folder_of_equal_names_is_something_else(encoder, folder, tmp_path):
    # Two days of a camera that numbers its pictures from 1.
    days = [tmp_path / day for day in ("monday", "tuesday")]
    for day, source in zip(days, folder[1], strict=False):
        day.mkdir()
        shutil.copy(source, day / "1.png")
    monday, tuesday = map(list_images, days)
    assert monday.digest() == tuesday.digest()
    output = tmp_path / "vectors.npz"
    embed.embed_images(encoder, days[0], output, show_progress=False)
    with pytest.raises(UserError, match="holds something else"):
        embed.embed_images(encoder, days[1], output, show_progress=False)
    output.unlink()
    identity = {"weights": encoder.fingerprint, "images": monday.digest(), "folder": str(days[0])}
    Parts(output, identity)
    with pytest.raises(UserError, match="unfinished file that differs in its folder;"):
        embed.embed_images(encoder, days[1], output, show_progress=False)


def test_a_list_with_other_class_names_is_another_list(tmp_path):
    digests = set()
    for label in ("cat", "dog"):
        (tmp_path / "x.csv").write_text(f"path,label\nx.png,{label}\n")
        digests.add(list_images(tmp_path / "x.csv").digest())
    assert len(digests) == 2


def test_files_of_something_else_are_not_overwritten_unasked(encoder, folder, tmp_path):
    output = tmp_path / "vectors.npz"
    np.savez(output, mine=np.zeros(3))
    with pytest.raises(UserError, match="holds something else"):
        embed.embed_images(encoder, folder[0], output, show_progress=False)
    embed.embed_images(encoder, folder[0], output, overwrite=True, show_progress=False)
    assert vectors.read(output).model["count"] == 45


def _kinds():
    """The same picture in twenty kinds of files, by name; and of one that is cut out, as it should look."""
    coarse = np.random.default_rng(5).integers(40, 216, (4, 6, 3), np.uint8)
    image = Image.fromarray(coarse).resize((96, 64), Image.Resampling.BICUBIC)
    array = np.asarray(image)

    def saved(picture, kind, **options):
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        return stream.getvalue()

    kinds = {
        "a.png": saved(image, "PNG"),
        "b.jpg": saved(image, "JPEG", quality=95),
        "c.JPG": saved(image, "JPEG", quality=95),
        "d.webp": saved(image, "WEBP", lossless=True),
        "e.bmp": saved(image, "BMP"),
        "f.tif": saved(image, "TIFF"),
        "g.gif": saved(image, "GIF"),
        "h.jpg": saved(image.convert("CMYK"), "JPEG", quality=95),
        "i.png": saved(image.convert("RGBA"), "PNG"),
        "j.png": cv2.imencode(".png", array[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes(),
        "l.png": saved(image.quantize(256), "PNG"),
        "m.jpg": saved(image, "JPEG", quality=95, progressive=True),
        "r.ppm": saved(image, "PPM"),
    }
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[274] = orientation
        kinds[f"k{orientation}.jpg"] = saved(image.transpose(turn), "JPEG", quality=95, exif=exif)
    if features.check("avif"):
        kinds["s.avif"] = saved(image, "AVIF", quality=95)
    alpha = np.zeros((64, 96), np.uint8)
    alpha[8:56, 12:84] = 255
    hidden = np.where(alpha[..., None] > 0, array, 255 - array)
    kinds["n.png"] = saved(Image.fromarray(np.dstack([hidden, alpha])), "PNG")
    kinds["o.png"] = saved(
        Image.fromarray(np.where(alpha[..., None] > 0, array, 255).astype(np.uint8)), "PNG"
    )
    kinds["p.png"] = saved(image.convert("L").convert("RGB"), "PNG")
    return kinds


def test_twenty_kinds_of_files_are_embedded_as_what_they_show(encoder, tmp_path):
    kinds = _kinds()
    (tmp_path / "kinds").mkdir()
    for name, data in kinds.items():
        (tmp_path / "kinds" / name).write_bytes(data)
    outcome = embed.embed_images(encoder, tmp_path / "kinds", tmp_path / "kinds.npz", show_progress=False)
    assert outcome.unreadable == []
    found = vectors.read(tmp_path / "kinds.npz")
    by_name = dict(zip(found.paths.tolist(), found.embeddings, strict=True))
    assert by_name.keys() == kinds.keys()
    np.testing.assert_allclose(by_name.pop("n.png"), by_name.pop("o.png"), atol=1e-6)
    other = np.linalg.norm(by_name.pop("p.png") - by_name["a.png"])  # without its colours
    far = {name: np.linalg.norm(row - by_name["a.png"]) / other for name, row in by_name.items()}
    assert max(far.values()) < 0.5, far


def test_a_csv_with_boxes_and_cameras(encoder, folder, tmp_path):
    file = folder[0] / "some.csv"
    names = [path.relative_to(folder[0]).as_posix() for path in folder[1][:3]]
    rows = "".join(
        f"{name},{label},{n},0,0,40,30\n" for n, (name, label) in enumerate(zip(names, "bab", strict=True))
    )
    file.write_text("path,label,camera,x1,y1,x2,y2\n" + rows)
    embed.embed_images(encoder, file, tmp_path / "x.npz", show_progress=False)
    kinds = ["npz"]
    if importlib.util.find_spec("pyarrow"):
        kinds.append("parquet")
        embed.embed_images(encoder, file, tmp_path / "x.parquet", show_progress=False)
    file.unlink()
    for kind in kinds:
        assert vectors.read_model(tmp_path / f"x.{kind}")["boxes"]
        assert vectors.read(tmp_path / f"x.{kind}").cameras.tolist() == [0, 1, 2]
    embed.embed_images(encoder, folder[1][0].parent, tmp_path / "y.npz", show_progress=False)
    assert vectors.read(tmp_path / "y.npz").cameras is None
    both = joined.read(tmp_path / "[xy].npz")
    assert both.cameras.tolist() == [0, 1, 2] + [-1] * (len(both.paths) - 3)
    found = vectors.read(tmp_path / "x.npz")
    assert found.paths.tolist() == names
    assert [found.class_of(n) for n in range(3)] == ["b", "a", "b"]
    cut = [encoder.preprocess(path, box=np.array([0, 0, 40, 30])) for path in folder[1][:3]]
    assert not np.array_equal(cut[0], encoder.preprocess(folder[1][0]))
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["cameras"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ({}, "no folder or CSV"),
        ({"images/notes.txt": "x"}, "holds no image"),
        ({"images/x.png": "x"}, "none of the 1 images can be read, such as x.png"),
        ({"images": "name,label\n"}, "needs the columns path"),
        ({"images": "path,camera\nx.png,left\n"}, "none of the 1 images can be read"),
        (
            {"images": "path,x1,y1,x2,y2\nx.png,0,0,inf,9\n"},
            r"line 2: the box \(x1\+y1\+x2\+y2\) must be four numbers",
        ),
        (
            {"images": "path,x1,y1,x2,y2\nx.png,0,0,1e30,9\n"},
            r"line 2: the box \(x1\+y1\+x2\+y2\) must be four numbers",
        ),
        ({"images": "path\n" + "x" * 200_000 + "\n"}, "is no CSV file"),
        ({"images": "path\n"}, "has no rows"),
    ],
)
def test_nothing_to_embed(encoder, tmp_path, images, says):
    for name, text in images.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=says):
        embed.embed_images(encoder, tmp_path / "images", tmp_path / "x.npz", show_progress=False)


def test_images_that_come_later_are_looked_at_again(encoder, folder, tmp_path):
    (tmp_path / "list.csv").write_text("path\na.png\n")
    given = (encoder, tmp_path / "list.csv", tmp_path / "x.npz")
    with pytest.raises(UserError, match="none of the 1 images can be read"):
        embed.embed_images(*given, show_progress=False)
    shutil.copy(folder[1][0], tmp_path / "a.png")
    assert embed.embed_images(*given, show_progress=False).count == 1


def test_folders_that_are_links_are_searched_once(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    for place in ("real", "root/own"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(tmp_path / "x.png", tmp_path / place)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "root" / "own" / "loop").symlink_to(tmp_path / "root")
    assert list_images(tmp_path / "root").paths == ["link/x.png", "own/x.png"]


@pytest.mark.parametrize("turned", [False, True])
def test_a_folder_goes_before_links_to_it_whatever_the_disk_lists_first(tmp_path, monkeypatch, turned):
    for name in ("mug", "plate"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").touch()
    (tmp_path / "cup").symlink_to(tmp_path / "mug")
    listed = os.walk

    def walk(*arguments, **settings):
        for place, inside, names in listed(*arguments, **settings):
            inside.sort(reverse=turned)
            yield place, inside, names

    monkeypatch.setattr(os, "walk", walk)
    assert list_images(tmp_path).paths == ["mug/x.png", "plate/x.png"]


def test_images_that_were_mended_are_told_and_made_again(encoder, folder, tmp_path, capsys):
    for n in range(3):
        shutil.copy(folder[1][n], tmp_path / f"{n}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:50])
    given = (encoder, tmp_path, tmp_path / "x.npz")
    assert embed.embed_images(*given, show_progress=False).count == 2
    listed = embed.unreadable_list(tmp_path / "x.npz")
    assert listed.read_text().startswith("1.png\t")
    embed.embed_images(*given, show_progress=False)
    assert "these embeddings, but for 1 images that could not be read" in capsys.readouterr().out
    (tmp_path / "1.png").write_bytes(whole)
    with pytest.raises(UserError, match="before some of these images changed; give --overwrite"):
        embed.embed_images(*given, show_progress=False)
    assert embed.embed_images(*given, overwrite=True, show_progress=False).count == 3
    assert not listed.exists()


def test_one_process_at_a_time_makes_a_file(encoder, folder, tmp_path):
    output = tmp_path / "x.npz"
    with (
        holding(tmp_path / "x.npz.lock"),
        pytest.raises(UserError, match="another process is making"),
    ):
        embed.embed_images(encoder, folder[0], output, show_progress=False)
    assert not output.exists()


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "damaged.npz").write_bytes(b"PK\3\4 nothing")
    np.savez(tmp_path / "foreign.npz", embeddings=np.zeros((2, 3)))
    np.savez(tmp_path / "pickled.npz", model="{}", embeddings=np.array([None]), paths=np.array(["x"]))
    for name, says in (
        ("missing", "there is no file"),
        ("damaged", "is damaged"),
        ("foreign", "lacks"),
        ("pickled", "damaged"),
    ):
        with pytest.raises(UserError, match=says):
            vectors.read(tmp_path / f"{name}.npz")


def test_mistakes_are_one_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "hap2s_jax.embed",
        f"--workdir={tmp_path}",
        "--images=x",
        "--output=y.npz",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "holds no run" in done.stderr
    assert done.stderr.count("\n") == 1


def test_parts_together_are_what_one_machine_makes(run, encoder, spoilt, folder, tmp_path, capsys):
    output, pattern = tmp_path / "whole.npz", str(tmp_path / "part-*.npz")
    embed.embed_images(encoder, spoilt, output, show_progress=False)
    for number in range(1, 12):  # so many that their names are not in order
        arguments = [f"--workdir={run.workdir}", f"--images={spoilt}", f"--part={number}/11"]
        if number == 1:
            assert embed.main([*arguments, f"--output={tmp_path / 'part-1.npz'}"]) == 0
        else:
            to = tmp_path / f"part-{number}.npz"
            embed.embed_images(encoder, spoilt, to, part=(number, 11), show_progress=False)
    whole, parts = vectors.read(output), joined.read(pattern)
    np.testing.assert_allclose(parts.embeddings, whole.embeddings, atol=1e-6)
    for name in ("paths", "labels", "class_names"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert {**parts.model, "part": None}.items() >= {"images": str(spoilt), "count": 45, "part": None}.items()
    found = []
    for gallery in (str(output), pattern):
        query = ["--threshold=none", "--index=exact", "--query", str(folder[1][7])]
        capsys.readouterr()
        assert search.main([f"--gallery={gallery}", *query]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]

    (tmp_path / "part-3.npz").rename(tmp_path / "aside.npz")
    with pytest.raises(UserError, match=r"of 11 parts number 3 is missing; .*--part=3/11"):
        joined.read(pattern)
    shutil.copy(tmp_path / "part-2.npz", tmp_path / "part-2b.npz")
    with pytest.raises(UserError, match=r"part-2b.npz and .*part-2.npz are both part 2 of 11"):
        joined.read(pattern)
    with pytest.raises(UserError, match=r"there are no files .*none-\*"):
        joined.read(tmp_path / "none-*")
    with pytest.raises(UserError, match=r"--part is 4/3; it should be between 1/N and N/N"):
        embed.embed_images(encoder, spoilt, tmp_path / "x.npz", part=(4, 3))


def test_files_of_several_folders_are_one_gallery(encoder, folder, tmp_path):
    classes = sorted(path for path in folder[0].iterdir() if path.is_dir())
    for place, chosen in (("a", classes[:2]), ("b", classes[1:3])):
        for path in chosen:
            shutil.copytree(path, tmp_path / place / path.name)
        embed.embed_images(encoder, tmp_path / place, tmp_path / f"{place}.npz", show_progress=False)
    found = joined.read(tmp_path / "[ab].npz")
    assert found.model["images"] == str(tmp_path)
    assert found.class_names.tolist() == [path.name for path in classes[:3]]
    for row, path in enumerate(found.paths):
        assert (tmp_path / path).is_file()
        assert found.class_of(row) == path.split("/")[1]
    other = dict(np.load(tmp_path / "b.npz"))
    other["model"] = np.array(str(other["model"]).replace(encoder.fingerprint, "0" * 16))
    np.savez(tmp_path / "b.npz", **other)
    with pytest.raises(
        UserError, match=r"b.npz was embedded with another encoder than .*a.npz: its fingerprint"
    ):
        joined.read(tmp_path / "[ab].npz")


@pytest.mark.parametrize(
    "splits", [("train", "test"), ("train", "val"), ("Train", "val", "Query", "database"), ("train", "query")]
)
def test_folders_of_a_split_hold_the_classes_as_training_reads_them(tmp_path, splits):
    for name in splits:
        for label in ("a", "b", "c"):
            (tmp_path / name / label).mkdir(parents=True)
            (tmp_path / name / label / f"{label}.png").write_bytes(b"")
    for path in (tmp_path / "other" / "x.png", tmp_path / splits[0] / "y.png", tmp_path / "z.png"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = list_images(tmp_path)
    names = {
        p: found.class_names[n] if n >= 0 else "" for p, n in zip(found.paths, found.labels, strict=True)
    }
    assert len(names) == 3 * len(splits) + 3
    if splits == ("train", "query"):  # no split: a class may be called so
        assert found.class_names == ("other", "query", "train")
        return
    (line,) = found.remarks
    assert "a split, as in training: the classes are the folders in them" in line
    if splits == ("train", "val"):
        with pytest.raises(UserError, match="to test on the validation images, call them test"):
            read_folder(tmp_path)
        return
    parts = read_folder(tmp_path, split="disjoint") if len(splits) == 2 else read_folder(tmp_path)
    for source in filter(None, (parts.train, parts.validation, parts.test)):
        for path, label in zip(source.paths, source.labels, strict=True):
            assert names.pop(path) == source.class_names[label]
    assert set(names.values()) == {""}
    assert len(names) == 3


def test_markets_layout_tells_class_and_camera_as_training_reads_them(tmp_path):
    trees.market(tmp_path)
    found = list_images(tmp_path)
    parts = read_folder(tmp_path)
    said = {
        path: (found.class_names[label], camera)
        for path, label, camera in zip(found.paths, found.labels, found.cameras, strict=True)
    }
    for source in (parts.train, parts.test):
        for path, label, camera in zip(source.paths, source.labels, source.cameras, strict=True):
            assert said.pop(path) == (source.class_names[label], camera)
    assert not said
    assert found.others["camera"] == [*map(str, found.cameras)]
