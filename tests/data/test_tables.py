"""CSV files as people have them, and what is said about what cannot be judged or stands twice."""

from __future__ import annotations

import csv
import gzip
import io
import os
import shutil
import unicodedata
import zipfile

import numpy as np
import pytest
import trees

from hap2s_jax import check_data
from hap2s_jax.data import datasets, duplicates
from hap2s_jax.data.headers import read_header
from hap2s_jax.data.pixels import encode_png, place
from hap2s_jax.data.readers import own
from hap2s_jax.data.readers.table import read_table
from hap2s_jax.data.resized import change
from hap2s_jax.errors import UserError
from hap2s_jax.evaluation import evaluate
from hap2s_jax.evaluation.archive import read_pairs
from hap2s_jax.serving.listing import list_images

CLASSES, IMAGES = 8, 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for c in range(CLASSES):
        for k in range(IMAGES):
            trees.put(
                folder / "img" / f"klasse {c}" / f"{k} ñ.png", trees.encoded(trees.picture(c * 10 + k), "PNG")
            )
    return folder


def rows(column=None):
    """path, label, split and whatever `column` makes of (class, number); the first half of the classes train."""
    for c in range(CLASSES):
        for k in range(IMAGES):
            split = "train" if c < CLASSES // 2 else "query" if k == 0 else "gallery"
            row = [f"img/klasse {c}/{k} ñ.png", f"klasse {c}", split]
            yield row if column is None else [*row, column(c, k)]


def write(root, lines, *, head="path,label,split", delimiter=",", encoding="utf-8", end="\n", name="x.csv"):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerow(head.split(","))
    writer.writerows(lines)
    path = root / name
    path.write_bytes(text.getvalue().encode(encoding))
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_dialects_and_encodings_are_told(root, delimiter, encoding, end):
    lines = [*rows()]
    lines.insert(5, [])
    lines.append(["", "", ""])
    path = write(root, lines, delimiter=delimiter, encoding=encoding, end=end)
    parts = own.read_folder(path)
    assert (len(parts.train), len(parts.query), len(parts.gallery)) == (16, 4, 12)
    assert parts.train.class_names == tuple(f"klasse {c}" for c in range(4))
    assert all(parts.train.read(n)[:4] == b"\x89PNG" for n in range(16))
    listed = list_images(path)
    assert listed.paths == [row[0] for row in rows()]
    assert parts.remarks == ()


def test_the_line_that_names_the_delimiter_is_passed_over(root):
    path = write(root, rows(), delimiter=";")
    path.write_text("sep=;\n" + path.read_text())
    assert len(own.read_folder(path).train) == 16
    path.write_text(path.read_text() + ";;\n;klasse 1;train\n")
    with pytest.raises(UserError, match="line 36: path must not be empty"):
        own.read_folder(path)


def _zipped(*names):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, "x")
    return held.getvalue()


def _ods():
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:  # its first member is not compressed
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
    return held.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            _zipped("[Content_Types].xml", "xl/workbook.xml", "xl/worksheets/sheet1.xml"),
            "an Excel workbook; save its",
        ),
        (_zipped("[Content_Types].xml", "word/document.xml"), "an Office document; save its table as CSV"),
        (_ods(), "an OpenDocument file; save its table as CSV"),
        (_zipped("a/1.jpg"), "a zip archive; unpack it, and give the folder of images"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), "an Excel workbook, or another Office document"),
        (b"%PDF-1.7\n%\xe2\xe3\n1 0 obj", "a PDF; copy its table"),
        (trees.encoded(trees.picture(0)), "an image; give the folder of images"),
        (trees.encoded(trees.picture(0), "PNG"), "an image; give the folder of images"),
        (trees.encoded(trees.picture(0), "BMP"), "an image; give the folder of images"),
        (b"\0\0\0\x18ftypheic" + bytes(200), "an image; give the folder of images"),
        (b"PAR1" + bytes(50), "a Parquet file"),
        (gzip.compress(b"path,label"), "a compressed file; unpack it"),
        (b"\x7fELF\2\1\1" + bytes(300) + bytes(range(256)), "no text, and so no CSV file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "bytes",  # which hold the time
)
def test_what_is_no_text_is_named_with_what_to_give_instead(data, says, tmp_path):
    file = tmp_path / "photos.csv"
    file.write_bytes(data)
    for read in (own.read_folder, list_images, lambda p: read_pairs(str(p))):
        with pytest.raises(UserError) as error:
            read(file)
        assert f"{file} is {says}" in str(error.value)
        assert str(error.value).isprintable()


def test_a_quote_that_is_not_closed_is_named_with_its_line(root):
    file = write(root, rows())
    lines = file.read_text().splitlines(keepends=True)
    for number in (1, 7, len(lines) - 1):
        for quoted in (False, True):  # all the others too
            cells = [[f'"{cell}"' if quoted else cell for cell in line.strip().split(",")] for line in lines]
            cells[number][1] = '"' + cells[number][1].strip('"')
            for end in ("\n", "\r\n", "\r"):
                text = end.join(map(",".join, cells))
                for last in ("", end):
                    file.write_bytes((text + last).encode())
                    for read in (own.read_folder, list_images):
                        with pytest.raises(
                            UserError, match=rf"x.csv, line {number + 1}: a quote is not closed"
                        ):
                            read(file)
    file.write_text(
        "path,label,note\n" + "".join(f"{n}.png,{n % 4},x\n" for n in range(9)) + '9.png,1,"' + "x\n" * 99_999
    )
    with pytest.raises(UserError, match="line 11: a quote is not closed"):
        own.read_folder(file)


def test_quotes_and_line_ends_that_belong_to_cells_stay(root):
    file = root / "quoted.csv"
    cells = ['"two\nlines"', '"a ""word"" of it"', '5" tall', '"cut" off', '"three\r\n""quoted""\nlines"']
    file.write_bytes(
        ("path,label,note\n" + "".join(f"{n}.png,{n},{c}\n" for n, c in enumerate(cells))).encode()
    )
    found = list_images(file)
    assert found.paths == [f"{n}.png" for n in range(5)]
    assert found.others["note"] == [
        "two\nlines",
        'a "word" of it',
        '5" tall',
        "cut off",
        'three\r\n"quoted"\nlines',
    ]


def test_paths_of_other_systems(root):
    def changed(change):
        return own.read_folder(write(root, ([change(path), *rest] for path, *rest in rows()))).train.paths

    expected = own.read_folder(write(root, rows())).train.paths
    assert changed(lambda path: path.replace("/", "\\")) == expected
    assert changed(lambda path: path.replace("ñ", "n\u0303")) == expected  # as macOS decomposes it
    assert changed(lambda path: "C:\\Users\\me\\" + path.replace("/", "\\")) == expected
    # A backslash is a letter like any other where such a file is there.
    shutil.copy(root / expected[0], root / "a\\b.png")
    assert changed(lambda path: "a\\b.png")[0] == "a\\b.png"
    shutil.copy(root / expected[0], root / "Zoë.png")
    assert changed(lambda path: "file:///Users/me/zoe%CC%88.PNG")[0] == "Zoë.png"
    assert changed(lambda path: "\\\\server\\me\\" + path.upper().replace("/", "\\")) == expected
    shutil.copy(root / expected[0], root / os.fsdecode("Zoé.png".encode("cp1252")))
    assert changed(lambda path: "zoé.png")[0] == os.fsdecode("Zoé.png".encode("cp1252"))
    # What is not there stays as it is written.
    assert changed(lambda path: "no\\" + path)[0] == "no\\" + expected[0]


def test_columns_are_mapped_and_suggested(root):
    head = "id,person,file,part"
    lines = [(n, label, path, split) for n, (path, label, split) in enumerate(rows())]
    path = write(root, lines, head=head)
    columns = "label=person, path=FILE,split=part"
    parts = own.read_folder(path, columns=columns)
    assert parts.train.paths == own.read_folder(write(root, rows(), name="y.csv")).train.paths
    assert list_images(path, columns).paths == [row[0] for row in rows()]
    with pytest.raises(
        UserError, match=r"needs the columns path and label, found id, .*columns=path=file,label=person"
    ):
        own.read_folder(path)
    with pytest.raises(UserError, match=r"'lable=person' should be one of .*did you mean 'label'"):
        own.read_folder(path, columns="lable=person")
    with pytest.raises(UserError, match=r"has no column 'persons' \(did you mean 'person'\?\)"):
        own.read_folder(path, columns="label=persons,path=file")
    with pytest.raises(UserError, match="is for a CSV file"):
        own.read_folder(root, columns="label=person")
    reports = check_data.run("folder", str(path), {"columns": columns}, False, None)
    assert [report.images for report in reports] == [16, 16]


def test_the_table_of_wildlife_datasets_goes_in_as_it_is(root):
    pandas = pytest.importorskip("pandas")
    whole = [*rows()]
    frame = pandas.DataFrame(
        {
            "image_id": range(len(whole)),
            "identity": [label for _, label, _ in whole],
            "path": [path for path, _, _ in whole],
            "split": [{"gallery": "database"}.get(split, split) for _, _, split in whole],
            "bbox": [[1.0, 2.0, 8.0, 9.0]] * len(whole),
            "date": [None] * len(whole),
        }
    )
    frame.to_csv(root / "animals.csv")
    parts = own.read_folder(root / "animals.csv")
    assert parts.train.class_names == tuple(f"klasse {c}" for c in range(4))
    assert (len(parts.query), len(parts.gallery), parts.train.boxes) == (4, 12, None)
    table = read_table(root / "animals.csv", "camera=image_id,box=bbox")
    assert {*table.others} == {"camera", "date"}
    assert table.others["camera"] == [str(n) for n in range(len(whole))]
    boxes = own.read_folder(root / "animals.csv", columns="box=bbox").train.boxes
    assert boxes[0].tolist() == [1, 2, 9, 11]


@pytest.mark.parametrize(
    ("head", "columns", "cells", "expected"),
    [
        ("x1,y1,x2,y2", "", "1,2,5.4,9", [1, 2, 5, 9]),
        ("x,y,w,h", "box=x+y+w+h", "1,2,4,7", [1, 2, 5, 9]),
        ("left,top,box_width,box_height", "box=left+top+box_width+box_height", "1,2,4,7", [1, 2, 5, 9]),
        ("a,b,c,d", "box=a+b+c+d", "1,2,5,9", [1, 2, 5, 9]),
        ("cx,cy,w,h", "box=cx+cy+w+h", "3,5.5,4,7", [1, 2, 5, 9]),
        (
            "box_x_center,y center,width,height",
            "box=box_x_center+y center+width+height",
            "3,5.5,4,7",
            [1, 2, 5, 9],
        ),
        ("xmin,xmax,ymin,ymax", "box=xmin+ymin+xmax+ymax", "1,5,2,9", [1, 2, 5, 9]),
        ("x1,y1,x2,y2", "", "1;2;5,4;9,0", [1, 2, 5, 9]),
        ("x1,y1,x2,y2", "", ";;;", [0, 0, 0, 0]),
    ],
)
def test_boxes_in_every_form(root, head, columns, cells, expected):
    cells = cells.split(";" if ";" in cells else ",")
    lines = [[*row, *(cells if n else ["1", "2", "5", "9"])] for n, row in enumerate(rows())]
    path = write(root, lines, head=f"path,label,split,{head}")
    assert own.read_folder(path, columns=columns).train.boxes[3].tolist() == expected
    assert list_images(path, columns).boxes[3].tolist() == expected
    if head == "x,y,w,h":
        remarks = own.read_folder(path).remarks
        assert "columns=box=x+y+w+h" in remarks[0]
        assert list_images(path).remarks[0] == remarks[0]


@pytest.mark.parametrize("cells", ["10,20,4,7", "5,5,5,9", "0,0,0,0"])
def test_empty_boxes_are_counted_and_refused_everywhere(root, cells):
    lines = [[*row, *(cells if n == 3 else "1,2,9,9").split(",")] for n, row in enumerate(rows())]
    path = write(root, lines, head="path,label,split,x1,y1,x2,y2")
    message = r"1 of 32 boxes are empty or turned round, such as line 5: .*columns=box=x\+y\+w\+h"
    for read in (own.read_folder, list_images, lambda p: check_data.run("folder", str(p), {}, False, None)):
        with pytest.raises(UserError, match=message):
            read(path)


@pytest.mark.parametrize(
    ("head", "cells", "says"),
    [
        ("x1,y1,x2", "1,2,9", "a box has the columns x1, y1, x2, y2, and y2 is not there"),
        (
            "xmin,xmax,ymin,ymax",
            "1,5,2,9",
            r"left, top, right and bottom, .* in this order; xmax is out of it",
        ),
        ("x,w,y,h", "1,5,2,9", "in this order; w is out of it"),
    ],
)
def test_what_is_no_box_in_pixels_is_refused_everywhere(root, head, cells, says):
    path = write(root, [[*row, *cells.split(",")] for row in rows()], head=f"path,label,split,{head}")
    columns = "" if "x1" in head else f"box={head.replace(',', '+')}"
    for read in (lambda p: own.read_folder(p, columns=columns), lambda p: list_images(p, columns)):
        with pytest.raises(UserError, match=says):
            read(path)


@pytest.mark.parametrize(
    ("head", "cells"),
    [
        ("x1,y1,x2,y2", "0.25,0.5,0.75,1"),
        ("cx,cy,w,h", "0.5,0.75,0.5,0.5"),
        ("x,y,width,height", "0.25,0.5,0.5,0.50001"),
    ],
)
def test_boxes_as_shares_are_those_pixels(root, head, cells):
    """As MegaDetector and YOLO write them; some images are taken whole."""
    lines = [[*row, *(cells if n % 2 else ",,,").split(",")] for n, row in enumerate(rows())]
    path = write(root, lines, head=f"path,label,split,{head}")
    columns = "" if "x1" in head else f"box={head.replace(',', '+')}"
    table = read_table(path, columns)
    assert "taken as shares of their images" in table.remarks[0]
    assert "16 of 32 images have no box" in table.remarks[1]
    assert table.boxes[0].tolist() == [0, 0, 0, 0]
    drawn = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    for box in (table.boxes[1], own.read_folder(path, columns=columns).train.boxes[1]):
        assert place(40, 60, lambda h, w: (0, 0, h, w), box) == (20, 15, 20, 30)
        small, kept = change(30, False).call(encode_png(drawn), box)
        assert place(*read_header(small).upright, lambda h, w: (0, 0, h, w), kept) == (10, 8, 10, 14)
        assert change(None, True).call(encode_png(drawn), box)[1] is None


def test_columns_are_joined_and_labels_that_are_nearly_alike_are_counted(root):
    def lines(change):
        return [
            (*path.rsplit("/", 1), change(n, label), split) for n, (path, label, split) in enumerate(rows())
        ]

    def read(change):
        path = write(root, [*lines(change), ("", "", "", "")], head="Folder,File Name,label,split")
        return own.read_folder(path, columns="path=folder+file name")

    plain = own.read_folder(write(root, rows(), name="y.csv"))
    whole = read(lambda n, label: unicodedata.normalize("NFD", "Bär ") + label)
    assert whole.train.paths == plain.train.paths
    assert whole.train.class_names == tuple(f"Bär klasse {c}" for c in range(4))
    assert whole.remarks == ()
    mixed = read(lambda n, label: [label, label.upper(), f"{label[-1]},0", f"0{label[-1]}"][n % 4])
    assert "32 labels differ only in capitals" in mixed.remarks[0]
    assert "'0,0' and '00'" in mixed.remarks[0]
    nobody = read(lambda n, label: label if n % 4 != 1 else "?" * (n % 8 == 1))
    assert "8 images are of an unknown individual (no label, ?)" in nobody.remarks[0]


def test_a_box_outside_its_image_is_counted(root, capsys):
    lines = [[*row, *("200,0,300,9" if n == 3 else "1,2,9,9").split(",")] for n, row in enumerate(rows())]
    path = write(root, lines, head="path,label,split,x1,y1,x2,y2")
    with pytest.raises(UserError, match="1 images cannot be read"):
        check_data.run("folder", str(path), {}, True, None)
    assert "its box 200, 0, 300, 9" in capsys.readouterr().out


def cameras_of(root, column):
    return read_table(write(root, rows(column), head="path,label,split,camera")).cameras


def test_any_text_is_a_camera_and_nothing_is_unknown(root):
    assert cameras_of(root, lambda c, k: 3 * k)[:4].tolist() == [0, 3, 6, 9]
    assert cameras_of(root, lambda c, k: f"cam0{3 - k}")[:4].tolist() == [3, 2, 1, 0]
    assert cameras_of(root, lambda c, k: "") is None
    mixed = cameras_of(root, lambda c, k: "" if k == 1 else f"hall {k}")
    assert mixed[[0, 2, 3]].tolist() == [0, 1, 2]
    unknown = mixed[mixed < 0]
    assert len(set(unknown.tolist())) == len(unknown) == CLASSES
    # Two images of unknown cameras may match each other.
    figures = evaluate(
        np.eye(2)[[0, 0]],
        [0, 0],
        mixed[[1, 5]],
        query=[0],
        gallery=[1],
        protocols=("query_gallery",),
        ranks=(1,),
    )
    assert figures["mAP"] == 1


def test_cameras_without_matches_are_told_before_anything_is_trained(root):
    head = "path,label,split,camera"
    per_person = own.read_folder(write(root, rows(lambda c, k: f"camera of {c}"), head=head))
    (remark,) = per_person.remarks
    assert remark == (
        "query_gallery: 4 of 4 queries have no valid match, so nothing can be measured: 4 have such images of their "
        "own camera only, which do not count (name the camera that took each image, or leave cameras out; a CSV's by "
        "data.options.columns=camera=)"
    )
    without = own.read_folder(root / "x.csv", columns="camera=")
    assert (without.test.cameras, without.remarks) == (None, ())
    one = own.read_folder(write(root, rows(lambda c, k: "door"), head=head))
    assert one.test.cameras is None
    assert "all test images are of one camera" in one.remarks[0]
    some = own.read_folder(
        write(root, rows(lambda c, k: "" if c == 7 and k == 1 else min(k, c % 2)), head=head)
    )
    assert some.remarks[0].startswith("1 of 16 test images name no camera")
    assert some.remarks[1].startswith(
        "query_gallery: 2 of 4 queries have no valid match and are left out: 2 have such images of their own camera"
    )


def test_queries_without_their_class_and_classes_of_one_image(root):
    apart = [row for row in rows() if row[2] == "train" or (row[2] == "query") == (row[1] < "klasse 6")]
    (remark,) = own.read_folder(write(root, apart)).remarks[1:] or own.read_folder(root / "x.csv").remarks
    assert remark.startswith(
        "query_gallery: 2 of 2 queries have no valid match, so nothing can be measured: 2 have no other image of"
    )
    single = [[p, label, "train" if s == "train" else "test"] for p, label, s in rows() if s != "gallery"]
    (remark,) = own.read_folder(write(root, single)).remarks
    assert remark.startswith(
        "class: 4 of 4 queries have no valid match, so nothing can be measured: 4 are alone"
    )
    train = [row for n, row in enumerate(rows()) if row[2] != "train" or n % IMAGES == 0]
    assert own.read_folder(write(root, train)).remarks[0].startswith("no training class has two images")


def test_what_stands_twice_is_counted_and_listed(root, capsys):
    whole = [*rows()]
    copy = root / "img" / "copy.png"
    shutil.copy(root / whole[0][0], copy)
    lines = [
        *whole,
        whole[1],
        whole[1],
        [whole[2][0], "klasse 3", "train"],
        ["img/copy.png", "klasse 5", "gallery"],
    ]
    path = write(root, lines)
    dataset = datasets.load("folder", data_dir=path, validation_fraction=0.0)
    found = duplicates.find(dataset)
    assert found.repeated == [(str(root / whole[1][0]), 3)]
    both = [str(root / whole[0][0]), str(copy)]
    assert found.two_labels == [
        (both, ["klasse 0", "klasse 5"]),
        ([str(root / whole[2][0])], ["klasse 0", "klasse 3"]),
    ]
    assert found.shared == [both]
    # Boxes at two places of an image are two images.
    boxes = [[*row, n, 0, n + 5, 5] for n, row in enumerate(lines)]
    boxed = write(root, boxes, head="path,label,split,x1,y1,x2,y2", name="boxes.csv")
    assert not [*duplicates.find(datasets.load("folder", data_dir=boxed, validation_fraction=0.0)).lines()]
    # With too much to read, names alone are compared.
    quick = duplicates.find(dataset, at_most_bytes=1)
    assert (quick.compared, quick.shared, len(quick.repeated)) == (False, [], 1)
    check_data.run("folder", str(path), {}, False, None, list_duplicates=True)
    out = capsys.readouterr().out
    assert f"1 images are listed more than once: {root / whole[1][0]} (3 times)" in out
    assert "2 images stand under more than one label" in out
    assert "verdict: this can be trained on, but first check" in out
    copy.unlink()


def test_files_of_other_kinds_are_counted_or_taken(tmp_path):
    from PIL import Image

    root = trees.class_folders(tmp_path / "own")
    for n, name in enumerate(("a.heic", "b.HEIC", "c.jxl", "notes.txt", "Thumbs.db")):
        (root / f"Klasse {n} æøå" / name).write_bytes(b"?")
    Image.fromarray(trees.picture(77)).save(root / "Klasse 0 æøå" / "x.pgm")
    Image.fromarray(trees.picture(78)).save(root / "Klasse 0 æøå" / "y.jp2")
    parts = own.read_folder(root)
    assert len(parts.train) + len(parts.test) == 7 * 4 + 2
    (remark,) = parts.remarks
    assert remark == (
        "4 files are of kinds that cannot be read here and are left out (2 .heic, 1 .jxl, 1 .txt), such as "
        "Klasse 0 æøå/a.heic; save images among them as JPEG or PNG"
    )
    (tmp_path / "heic" / "one").mkdir(parents=True)
    (tmp_path / "heic" / "one" / "1.heic").write_bytes(b"?")
    for read in (own.read_folder, list_images):
        with pytest.raises(UserError, match=r"no image.*1 files are of kinds that cannot be read .*1 \.heic"):
            read(tmp_path / "heic")
