"""The store: what follows from the log, whoever writes it; what is added; what is found; what decisions say."""

from __future__ import annotations

import concurrent.futures
import csv
import json
import os
import shlex
import shutil

import numpy as np
import pytest
from pixel_encoder import PixelEncoder, draw

from hap2s_jax import formats, gallery
from hap2s_jax.catalogue import adding, exporting, filters, moving, reviewed
from hap2s_jax.catalogue.columns import TEXTS, shown_id
from hap2s_jax.catalogue.searching import Finder
from hap2s_jax.catalogue.store import Store
from hap2s_jax.catalogue.tables import Tables
from hap2s_jax.data import advice, datasets
from hap2s_jax.data.readers import own
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation.inputs import DISTANCES
from hap2s_jax.serving import vectors


def _seen(store):
    return [(store.name_of(row), int(store.statuses[row])) for row in range(len(store.ids))]


def test_what_images_are_called_is_what_a_stack_per_image_says(store):
    """The oracle keeps for each image what each decision that was not undone made of it."""
    rng = np.random.default_rng(0)
    stacks = [[(0, name)] for name, _ in _seen(store)]
    other = Store(store.tables.folder)
    for turn in range(60):
        writer = (store, other)[turn % 2]
        rows = rng.choice(len(stacks), rng.integers(1, 4), replace=False).tolist()
        images = [shown_id(int(store.ids[row])) for row in rows]
        if rng.random() < 0.6:
            label = f"animal {rng.integers(0, 9)}"
            number = writer.relabel(images, label)
            for row in rows:
                stacks[row].append((number, label))
            continue
        number = int(rng.integers(1, max(2, store.last)))
        there = [stack for stack in stacks if stack[-1][0] == number]
        if there:
            writer.undo(number)
            for stack in there:
                stack.pop()
        else:
            with pytest.raises(UserError, match="undo is"):
                writer.undo(number)
    for one in (store, other, Store(store.tables.folder)):
        one.refresh()
        assert [name for name, _ in _seen(one)] == [stack[-1][1] for stack in stacks]


def test_decisions_are_checked_and_undo_leaves_later_ones_alone(store):
    paths = store.texts("path")
    assert store.new(paths[8:10], by="ann") == 1
    assert store.name_of(8) == "individual-0001"
    assert store.same([paths[9]], "animal 1", by="bob") == 2
    assert store.undo(1) == (3, 1)
    assert (store.name_of(8), store.name_of(9)) == ("", "animal 1")
    assert store.undo(by="bob") == (4, 0)
    assert store.name_of(9) == "individual-0001"
    with pytest.raises(UserError, match="nothing is left"):
        store.undo(by="bob")
    assert store.merge(["animal 1", "animal 2"], "animal 3") == 5
    assert store.individuals()["animal 3"] == 3
    assert store.split([paths[1]]) == 6
    store.mark([paths[3]], "removed")
    assert store.individuals()["animal 3"] == 1
    store.mark([paths[20]], "later")
    assert store.queue()[-1] == 20
    before = store.last
    wrong = {
        "exists with other capitals: 'animal 3'": lambda: store.relabel([paths[8]], "Animal 3"),
        "there is no individual 'animal 33'": lambda: store.same([paths[8]], "animal 33"),
        "there is an individual": lambda: store.new([paths[8]], "animal 3"),
        "is no image of": lambda: store.same(["x.png"], "animal 3"),
        "letters that are printed": lambda: store.relabel([paths[8]], "a\nb"),
        "not all, and of no other": lambda: store.split([paths[4]]),
        "status is": lambda: store.mark([paths[8]], "gone"),
        "decided meanwhile: same": lambda: Store(store.tables.folder).same([paths[11]], "animal 4", seen=8),
    }
    store.same([paths[11]], "animal 5", seen=8, by="ann")
    for says, decision in wrong.items():
        with pytest.raises(UserError, match=says):
            decision()
    assert Store(store.tables.folder).last == before + 1
    kinds = ["new", "same", "undo", "undo", "merge", "split", "removed", "later", "same"]
    assert [entry.kind for entry in store.history()] == kinds
    assert store.history(1)[0].by == "ann"


def test_many_writers_lose_nothing(store):
    def write(number):
        Store(store.tables.folder).relabel([int(store.ids[number])], f"animal of {number}")

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(16)))
    store.refresh()
    assert [entry.number for entry in store.history()] == [*range(1, 17)]
    assert [store.name_of(n) for n in range(16)] == [f"animal of {n}" for n in range(16)]


def test_only_what_is_new_is_added_whatever_went_before(store, encoder, pictures, csv_file, tmp_path):
    read = encoder.read
    assert adding.add(store, csv_file, encoder, show_progress=False) == (0, 48, [])
    assert adding.add(store, pictures, encoder, show_progress=False).known == 48  # other folder, same content
    assert encoder.read == read
    more = tmp_path / "more"
    draw(more / "eva" / "a.png", 50, 0)
    (more / "b.png").write_bytes(b"no image")
    draw(more / "c.png", 0, 0)  # known by content
    os.symlink(draw(tmp_path / "elsewhere" / "d.png", 51, 0), more / "d.png")
    added = adding.add(store, more, encoder, show_progress=False)
    assert (added.new, added.known) == (2, 1)
    assert [path for path, _ in added.left_out] == ["b.png"]
    assert store.individuals()["eva"] == 1
    draw(more / "eva" / "a.png", 52, 0, noise=0)
    ((path, why),) = adding.add(store, more / "eva", encoder, show_progress=False).left_out or [("", "")]
    assert (path, why) == ("", "")  # another folder: another image
    (more / "eva" / "a.png").write_bytes((pictures / "0-00.png").read_bytes() + b"\0")
    ((_, why), _) = sorted(adding.add(store, more, encoder, show_progress=False).left_out)[::-1]
    assert "has changed" in why
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(f"path,x1,y1,x2,y2\n{pictures}/0-00.png,0,0,16,16\n{pictures}/0-00.png,16,0,32,16\n")
    assert adding.add(store, boxes, encoder, show_progress=False).new == 2
    expected = encoder.preprocess(pictures / "0-00.png", box=np.array([16, 0, 32, 16]))
    exporting.export(store, tmp_path / "boxes.npz")
    with pytest.raises(UserError, match=r"boxes\.npz is of boxes in images"):
        adding.add(store, tmp_path / "boxes.npz", show_progress=False)
    np.testing.assert_allclose(store.embeddings[-1], expected.reshape(-1) / 255 @ encoder._turn, rtol=1e-5)
    assert len(Store(store.tables.folder).ids) == len(store.ids)


def test_what_a_listing_says_of_known_images_counts_or_is_told(encoder, pictures, tmp_path):
    def add(*lines):
        sheet, told = tmp_path / "sheet.csv", []
        sheet.write_text("\n".join([lines[0], *(f"{pictures}/{line}" for line in lines[1:])]))
        added = adding.add(store, sheet, encoder, show_progress=False, tell=told.append)
        return added.known, told

    store = Store.create(tmp_path / "a store", encoder)
    known, told = add("path,label", "0-00.png,a", "0-00.png,b", "0-01.png,", "0-02.png,", "0-03.png,")
    assert known == 1  # in a new store, under two labels
    (line,) = told
    assert line.startswith("1 known images have another label here, such as ")
    assert "('b' here, 'a' in the gallery)" in line
    command = line.partition("python -m hap2s_jax.gallery ")[2].removesuffix(" changes it")
    store.mark([f"{pictures}/0-02.png".rpartition("/")[2]], "later")
    # What was filled in counts where nobody has decided, and is told elsewhere.
    known, told = add("path,label", "0-00.png,a", "0-01.png,c", "0-02.png,c", "0-03.png,c", "0-01.png,d")
    assert known == 5
    assert store.individuals() == {"a": 1, "c": 2}
    assert told[0].startswith("2 known images had no label and take the one that they have here, such as ")
    assert told[1].startswith("2 known images have another label here, such as ")
    assert "0-02.png ('c' here, 'none' in the gallery)" in told[1]
    assert len(told) == 2
    store.undo()
    assert store.individuals() == {"a": 1}
    assert add("path,label", "0-01.png,c")[1][0].startswith("1 known images have another label here")
    assert gallery.main(shlex.split(command)) == 0
    store.refresh()
    assert store.individuals() == {"b": 1}
    # A decision since is nothing new.
    assert add("path,label", "0-00.png,a", "0-02.png,", "0-03.png,?")[1][1:] == []
    (line,) = add("path,camera,weight,weight", "0-00.png,north,3,4")[1]
    assert "other values here in columns beside the label, such as 0-00.png (camera: 'north' here, ''" in line
    store.mark(["0-00.png"], "removed")
    assert add("path,label", "0-00.png,x")[1] == []


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_store_is_of_any_distance_that_a_run_may_have(encoder, pictures, tmp_path, monkeypatch, distance):
    monkeypatch.setattr(PixelEncoder, "distance", distance)
    store = Store.create(tmp_path / "store", encoder)
    adding.add(store, pictures, encoder, show_progress=False)
    ((match,),) = Finder(store).search(store.embeddings[:1], 1, per="image")
    assert (match.row, round(match.distance, 3)) == (0, 0)


def test_two_columns_of_one_name_are_both_kept(encoder, pictures, tmp_path):
    sheet = tmp_path / "sheet.csv"
    sheet.write_text(f"path,Note,note,note (2),note\n{pictures}/0-00.png,1,2,3,4\n")
    store = Store.create(tmp_path / "store", encoder)
    adding.add(store, sheet, encoder, show_progress=False)
    kept = {"note": "1", "note (2)": "2", "note (2) (2)": "3", "note (3)": "4"}
    assert json.loads(store.text("more", 0)) == kept


def test_bad_input_changes_nothing(store, encoder, pictures, tmp_path):
    def csv(text):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
        file.write_text(text)
        return lambda: adding.add(store, file, encoder, show_progress=False)

    other = PixelEncoder(tmp_path, 1)
    wrong = {
        "of .* and these are vectors of": lambda: adding.add(store, pictures, other, show_progress=False),
        "needs the encoder": lambda: adding.add(store, pictures, show_progress=False),
        "other capitals": csv(f"path,label\n{pictures}/0-00.png,ANIMAL 0\n"),
        "exists with other capitals": csv(f"path,label\n{pictures}/0-00.png,x\n{pictures}/0-01.png,X\n"),
        "needs the columns path": csv("picture\nx.png\n"),
        "no folder or CSV": lambda: adding.add(store, tmp_path / "none", encoder, show_progress=False),
        "uses this encoder already": lambda: moving.re_embed(store, encoder, show_progress=False),
        "already exists": lambda: Store.create(store.tables.folder, encoder),
        "there is no store": lambda: Store(tmp_path / "none"),
    }
    before = store.tables.versions()
    for says, what in wrong.items():
        with pytest.raises(UserError, match=says) as error:
            what()
        assert "\n" not in str(error.value)
    assert store.tables.versions() == before
    state = store.tables.folder / "store.json"
    record = json.loads(state.read_text())
    for change, says in (
        ({"format": formats.FORMAT + 1}, "has format"),
        ({"active": {**record["active"], "fingerprint": "../x"}}, "is damaged"),
        ({"active": 3}, "is damaged"),
    ):
        state.write_text(json.dumps({**record, **change}))
        with pytest.raises(UserError, match=says):
            Store(store.tables.folder)


def test_a_store_of_somebody_else_is_checked_before_it_is_read(store, enrolled, tmp_path):
    name = store.encoder["fingerprint"]

    def add(change, vector=1.0, dim=192):
        folder = shutil.copytree(enrolled, tmp_path / f"{change!r:.20} {vector} {dim}")
        rows = {"id": [5], "size": [1], **{n: [""] for n in TEXTS}, **change}
        Tables(folder).add_images(name, rows, np.full((1, dim), vector, np.float32))
        return folder

    assert len(Store(add({})).ids) == 49
    with pytest.raises(UserError, match="not finite"):
        Store(add({}, np.inf))
    with pytest.raises(UserError, match="further columns are"):
        Store(add({"more": ["[1]"]})).where("weight = 1")
    with pytest.raises(UserError, match="further columns are"):
        Store(add({"more": ["[" * 100_000]})).where("weight = 1")
    other = shutil.copytree(enrolled, tmp_path / "other")
    shutil.rmtree(other / "decisions.lance")
    with pytest.raises(UserError, match="decisions"):
        Store(other)
    shutil.copytree(other / f"images_{name}.lance", other / "decisions.lance")
    with pytest.raises(UserError, match="other columns"):
        Store(other)
    (store.tables.folder / "lock").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        store.relabel([store.texts("path")[0]], "x")


def test_a_store_that_claims_the_home_folder_shows_nothing_of_it(store, tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    rows = {"id": [5], "size": [1], **{n: [""] for n in ("box", "label", "camera", "time", "place", "more")}}
    rows |= {"folder": [str(tmp_path)], "path": ["store/store.json"]}
    store.tables.add_images(store.encoder["fingerprint"], rows, np.ones((1, 192), np.float32))
    store.refresh()
    assert store.folder_of(len(store.ids) - 1) is None
    assert store.folder_of(0) is not None


def test_embeddings_go_in_and_out(store, encoder, tmp_path):
    output = tmp_path / "out.npz"
    assert exporting.export(store, output, where="camera = 'north'") == 24
    found = vectors.read(output)
    rows = np.flatnonzero([name == "north" for name in store.texts("camera")])
    np.testing.assert_array_equal(found.embeddings, store.embeddings[rows])
    again = Store.create(tmp_path / "again", encoder)
    assert adding.add(again, output, show_progress=False).new == 24
    assert again.individuals() == {f"animal {n}": 1 for n in (0, 2, 4, 6)}
    np.testing.assert_array_equal(again.ids, store.ids[rows])


def test_columns_of_the_store_s_own_names_are_kept_and_nobody_is_no_individual(encoder, pictures, tmp_path):
    sheet = tmp_path / "sheet.csv"
    sheet.write_text(f"ID,path,label\n7,{pictures}/0-00.png,?\n8,{pictures}/0-01.png,Bruno\n")
    store = Store.create(tmp_path / "of a sheet", encoder)
    told = []
    adding.add(store, sheet, encoder, show_progress=False, tell=told.append)
    assert told == ["1 images labelled ? have no class", "the column id is kept as 'own id'"]
    assert store.individuals() == {"Bruno": 1}
    assert store.where('"own id" = 7').nonzero()[0].tolist() == store.queue().tolist()


@pytest.mark.parametrize("per", ["individual", "image"])
def test_search_is_a_loop_over_all_images(store, encoder, pictures, per):
    store.relabel(store.texts("path")[14:16], "animal 2")
    store.mark([store.texts("path")[3]], "unusable")
    queries = encoder([str(pictures / f"2-{n:02d}.png") for n in range(12)])
    where = "camera = 'south' and weight >= 30 and time < '2026-05-04'"
    for text, meets in (("", lambda row: True), (where, lambda row: row % 2 and row % 12 >= 3 and row < 36)):
        for query, found in zip(queries, Finder(store).search(queries, 3, per=per, where=text), strict=True):
            far = np.linalg.norm(store.embeddings.astype(np.float64) - query, axis=1)
            expected = []
            for row in np.argsort(far, kind="stable"):
                name = store.name_of(row)
                taken = per == "individual" and (not name or name in {e[1] for e in expected})
                if row != 3 and meets(row) and not taken:
                    expected.append((row, name))
            assert [(match.row, match.label) for match in found] == expected[:3]
            np.testing.assert_allclose(
                [m.distance for m in found], far[[e[0] for e in expected[:3]]], rtol=1e-5
            )


def test_groups_are_the_individuals_that_wait(store):
    groups = Finder(store).group(1.5)
    individuals = [{row % 12 for row in group.rows.tolist()} for group in groups]
    assert [len(group.rows) for group in groups] == [4] * 4 + [3] * 8
    assert all(len(found) == 1 for found in individuals)
    assert {group.sure for group in groups} == {1.0}
    assert len(Finder(store).group(1e-6)) == 40
    assert [len(g.rows) for g in Finder(store).group(100, neighbours=47)] == [40]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a='x'", [("a", "=", "x")]),
        ("a = 'it''s' AND \"b c\" >= -1.5e2", [("a", "=", "it's"), ("b c", ">=", -150.0)]),
        ("größe!='and a=1'", [("größe", "!=", "and a=1")]),
    ],
)
def test_filters_are_read(text, expected):
    assert filters.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a = b",
        "a = 'x' or 1 = 1",
        "a = 'x'; drop",
        "a = 'x' and",
        "a == 1",
        "f(a) = 1",
        "a = 'x' -- ",
        "1 = 1",
    ],
)
def test_filters_that_are_none(text):
    with pytest.raises(UserError, match="should be conditions"):
        filters.parse(text)


def test_a_filter_over_no_column_and_over_hostile_text(store):
    with pytest.raises(UserError, match=r"no image has a column 'camra'.*did you mean 'camera'"):
        store.where("camra = 'north'")
    assert not store.where("camera = 'north'' or ''1'' = ''1'").any()
    assert store.where("path != ''").all()
    assert not store.where("camera > 0").any()  # no number


def test_past_decisions_are_asked_again_in_the_gallery_of_their_day(store, tmp_path):
    paths, rng = store.texts("path"), np.random.default_rng(1)
    for row in range(12, 48):  # mistakes among them
        store.relabel([paths[row]], f"animal {row % 12 if rng.random() < 0.8 else rng.integers(0, 12)}")
    store.undo(5)
    store.relabel([paths[14]], "animal 2")
    found = reviewed.replay(store)
    named = {entry.number: entry for entry in store.history() if entry.kind == "relabel"}
    first = {}
    for number, image in zip(*(store.log.column(n).to_pylist() for n in ("number", "image")), strict=True):
        if number in named:
            first.setdefault(image, number)
    assert len(found.rows) == 35
    for row, number, right, wrong in zip(*found, strict=True):
        assert number == first[store.ids[row]]
        for value, same in ((right, True), (wrong, False)):
            keys = [
                other
                for other in range(48)
                if store.name_of(other)
                and first.get(store.ids[other], 0) < number
                and (store.name_of(other) == store.name_of(row)) == same
            ]
            far = [
                np.linalg.norm(store.embeddings[k].astype(np.float64) - store.embeddings[row]) for k in keys
            ]
            np.testing.assert_allclose(value, min(far, default=np.inf), rtol=1e-4)
    known = np.isfinite(found.right)
    assert found.rank_1() == (int((found.right < found.wrong)[known].sum()), int(known.sum()))
    rates = reviewed.error_rates(store, found)
    assert (rates.known, rates.unknown) == (int(known.sum()), 35)
    threshold, words = reviewed.choose_threshold(store, "0.7")
    assert (threshold, words) == (0.7, "threshold as given")
    assert "too few for a threshold" in reviewed.choose_threshold(store)[1]
    reviewed.promise(store, 1.0, 0.05)
    assert reviewed.read_promise(store) == (1.0, 0.05, store.last)
    accepted, count, low, high = reviewed.check_promise(found, 100.0, 0)
    assert accepted == count == int((~known).sum()) > 0
    assert low == pytest.approx(0.05 ** (1 / count), rel=1e-6)  # Clopper and Pearson, where all of them err
    assert high == 1


def test_with_enough_decisions_they_make_the_threshold(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("hap2s_jax.evaluation.thresholds.FEWEST_CLASSES", 6)
    for n in range(32):
        draw(tmp_path / "in" / f"{n:02d}.png", n % 8, n)
    store = Store.create(tmp_path / "store", encoder)
    adding.add(store, tmp_path / "in", encoder, show_progress=False)
    for row in range(32):
        store.relabel([store.texts("path")[row]], f"animal {row % 8}")
    threshold, words = reviewed.choose_threshold(store)
    found = reviewed.replay(store)
    assert found.right[np.isfinite(found.right)].max() <= threshold + 1e-6
    assert threshold < found.wrong[1:].min()
    assert "on 32 reviewed decisions" in words


def test_what_others_add_is_read_alone(store, encoder, tmp_path):
    other, before, kept = Store(store.tables.folder), store.embeddings, store.embeddings.copy()
    for view in range(3):
        draw(tmp_path / "more" / f"{view}.png", 20, view)
    assert adding.add(other, tmp_path / "more", encoder, at_once=2, show_progress=False).new == 3
    other.relabel(["1.png"], "animal 0")
    # Decisions that are read before the images that they are about.
    store._fold(store.tables.read_decisions(store.last))
    assert store.refresh()
    for name in ("ids", "embeddings", "labels", "first_labels", "statuses", "changed", "holding"):
        np.testing.assert_array_equal(getattr(store, name), getattr(Store(store.tables.folder), name))
    assert store.name_of(store.rows_of(["1.png"])[0]) == "animal 0"
    np.testing.assert_array_equal(before, kept)
    assert np.shares_memory(before, store.embeddings)
    found = store.embeddings
    other.tables.tidy()
    store.refresh()
    assert store.embeddings is found


def test_moving_to_another_encoder_goes_on_and_keeps_the_old_one(store, encoder, pictures, tmp_path):
    other = PixelEncoder(tmp_path, 1)
    old, ids, names = store.embeddings, store.ids, _seen(store)
    gone = pictures / "3-00.png"
    hidden = gone.rename(tmp_path / "hidden.png")
    with pytest.raises(UserError, match=r"3-00.png in .* cannot be read"):
        moving.re_embed(store, other, at_once=10, show_progress=False)
    assert Store(store.tables.folder).encoder == encoder.describe()
    hidden.rename(gone)
    assert moving.re_embed(store, other, at_once=10, show_progress=False) == (18, 48)
    for one in (store, Store(store.tables.folder)):
        assert one.encoder == other.describe()
        np.testing.assert_array_equal(one.ids, ids)
        assert _seen(one) == names
        np.testing.assert_allclose(one.embeddings, old @ encoder._turn.T @ other._turn, atol=1e-4)
    # Its rows are there again as they were, with nothing read.
    read = encoder.read
    assert moving.re_embed(store, encoder, show_progress=False) == (0, 48)
    assert encoder.read == read
    np.testing.assert_array_equal(store.embeddings, old)


def test_what_is_exported_is_what_training_reads(store, tmp_path):
    for row in range(12, 44):
        store.relabel([store.texts("path")[row]], f"animal {row % 12}")
    output = tmp_path / "train.csv"
    assert exporting.export(store, output, train=True, test_fraction=0.3) == 40
    data = own.read_folder(output)
    kept = {source.class_names[n] for source in (data.train,) for n in source.labels}
    lines = [line.split(",") for line in output.read_text().splitlines()[1:]]
    parts = {part: {line[1] for line in lines if line[-1] == part} for part in ("train", "test")}
    assert kept == parts["train"]
    assert not parts["train"] & parts["test"]
    assert len(parts["train"] | parts["test"]) == 12
    assert data.train.cameras is not None
    # Others do not move when one comes.
    store.relabel([store.texts("path")[45]], "a new animal")
    exporting.export(store, output, train=True, test_fraction=0.3)
    again = {line.split(",")[1]: line.split(",")[-1] for line in output.read_text().splitlines()[1:]}
    assert all(again[name] == part for part, names in parts.items() for name in names)


@pytest.mark.parametrize("count", range(1, 13))
@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.99])
def test_training_reads_what_is_exported_however_few_individuals_there_are(store, tmp_path, count, fraction):
    """Two images each of `count` individuals beside two single ones."""
    store.mark(store.ids[:12].tolist(), "removed")
    for row in range(12, 12 + count):
        store.relabel([int(store.ids[row]), int(store.ids[row + 12])], f"x{row}")
    for row in (36, 37):
        store.relabel([int(store.ids[row])], f"single {row}")
    output = tmp_path / "train.csv"
    if count < 2:
        with pytest.raises(UserError, match=r"at least four individuals, .* here are 3, of which 1 have"):
            exporting.export(store, output, train=True, test_fraction=fraction)
        return
    assert exporting.export(store, output, train=True, test_fraction=fraction) == 2 * count + 2
    classes = count + 2
    with output.open() as lines:
        rows = list(csv.DictReader(lines))
    trained = {row["label"] for row in rows if row["split"] == "train"}
    share = advice.validation_fraction(len(trained))
    data = datasets.load("folder", data_dir=output, validation_fraction=share)
    assert len(trained) + len(data.test.class_names) == classes
    assert len(trained) >= 2
    assert np.sum(np.bincount(data.test.labels) > 1) >= 2
