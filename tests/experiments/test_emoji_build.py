"""The rules by which the emoji set is built, each on small made-up input."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.emoji_build import build
from experiments.emoji_build.curate import (
    Drawing,
    apply_exceptions,
    assign_splits,
    confusable_pairs,
    curate,
    differences,
    distinct_drawings,
    drop_confusable,
    first_choices,
    large_enough,
    near_pairs,
)
from experiments.emoji_build.names import (
    CAMERA_OF_SET,
    IconSet,
    NameTable,
    base_code,
    normalise_code,
    read_table,
    squeeze,
)
from experiments.emoji_build.render import draw, encode_png, icon_svg, turn
from hap2s_jax.data import emoji
from hap2s_jax.errors import UserError


def icon_set(name="noto", icons=None, aliases=None, characters=None, width=16, height=16) -> IconSet:
    return IconSet(name, icons or {}, aliases or {}, width, height, characters or {}, "1.0.0")


def drawing(class_name, set_name, level=0, icon=None, code="1f600") -> Drawing:
    """A plain square, whose level says how far it is from others."""
    pixels = np.full((64, 64, 3), level, np.uint8)
    return Drawing(set_name, icon or f"{class_name}-{set_name}", code, class_name, pixels)


# Step 1: names.


def test_icons_are_found_by_published_unicode_and_reviewed_names():
    noto = icon_set(
        characters={"1f600": "grinning-face", "2764-fe0f": "red-heart", "1f4bb": "laptop"},
        icons={"grinning-face": {}, "red-heart": {}, "laptop": {}},
        aliases={"laptop-computer": {"parent": "laptop"}, "old-laptop": {"parent": "laptop-computer"}},
    )
    reviewed = [
        {"set": "fxemoji", "icon": "grin", "code": "1f600"},
        {"set": "fxemoji", "icon": "red-heart", "code": ""},
    ]
    table = NameTable.build({"noto": noto}, reviewed)
    assert table.code("noto", "red-heart") == "2764"
    assert table.code("emojione", "GrinningFace") == "1f600"
    assert table.code("fxemoji", "personalcomputer") == "1f4bb"  # Unicode: PERSONAL COMPUTER
    assert table.code("emojione", "old-laptop") == "1f4bb"
    assert table.code("fxemoji", "grin") == "1f600"
    assert table.code("fxemoji", "red-heart") is None  # reviewed: it draws another thing
    assert table.code("fxemoji", "nobody-knows") is None


def test_a_published_name_goes_before_unicodes():
    # Unicode calls 1f601 "grinning face with smiling eyes", which is today's name of 1f604.
    noto = icon_set(
        characters={"1f601": "beaming-face-with-smiling-eyes", "1f604": "grinning-face-with-smiling-eyes"}
    )
    table = NameTable.build({"noto": noto}, [])
    assert table.code("emojione", "grinning-face-with-smiling-eyes") == "1f604"


def test_withdrawn_icons_are_left_out_and_turned_aliases_drawn():
    icons = {"left": {"body": ""}, "withdrawn": {"body": "", "hidden": True}}
    aliases = {"right": {"parent": "left", "hFlip": True}, "also-left": {"parent": "left"}}
    assert icon_set(icons=icons, aliases=aliases).drawings() == ["left", "right"]


def test_spelling_is_ignored():
    assert normalise_code("2764-FE0F") == "2764"
    assert squeeze("Man’s Shoe & Co") == "mansshoeandco"


# Step 2: one class per base.


@pytest.mark.parametrize(
    ("code", "base"),
    [
        ("1f600", "1f600"),
        ("1f468", "1f9d1"),  # man -> person
        ("1f467", "1f9d2"),  # girl -> child
        ("1f469-200d-1f680", "1f9d1-200d-1f680"),  # woman astronaut -> astronaut
        ("1f482-200d-2640", "1f482"),  # woman guard -> guard
        ("1f936", "1f385"),  # Mrs Claus -> Santa Claus
        ("1f468-200d-1f469-200d-1f467-200d-1f466", "1f46a"),  # a family of four -> family
        ("1f468-200d-1f466", "1f46a"),
        ("1f469-200d-2764-200d-1f48b-200d-1f468", "1f48f"),  # kiss
        ("1f469-200d-2764-200d-1f468", "1f491"),  # couple with heart
        ("1f46c", "1f9d1-200d-1f91d-200d-1f9d1"),  # men holding hands -> people holding hands
        ("2640", "2640"),  # the female sign itself
        ("1f43b-200d-2744", "1f43b-200d-2744"),  # polar bear
        ("1f44b-1f3fd", None),  # a skin tone
        ("1f1eb-1f1f7", None),  # a flag
        ("1f3f3-200d-1f308", None),
        ("31-20e3", None),  # a keycap
        ("1f51f", None),
        ("1f6b6-200d-27a1", None),  # walking, facing right
        ("27a1", "27a1"),  # the right arrow itself
    ],
)
def test_base_of_an_emoji(code, base):
    assert base_code(code) == base


# Drawing.

ARROW = {"body": '<path d="M0 0h8v8H0z" fill="#000"/>'}  # the upper left quarter


def test_an_icon_is_drawn_on_white_in_its_own_view_box():
    pytest.importorskip("resvg_py", reason="the extra emoji-build is not installed")
    pixels = draw(icon_set(icons={"a": ARROW}), "a")
    assert pixels.shape == (64, 64, 3)
    assert (pixels[:32, :32] == 0).all()
    assert (pixels[32:] == 255).all()
    wide = draw(icon_set(icons={"a": {**ARROW, "width": 32}}), "a")
    assert (wide[:16] == 255).all()  # twice as wide as high: white above and below
    assert (wide[16:32, :16] == 0).all()


def test_the_documents_view_box_falls_back_on_the_sets():
    assert 'viewBox="0 0 16 16"' in icon_svg(icon_set(icons={"a": ARROW}), "a")
    assert 'viewBox="0 0 16 9"' in icon_svg(icon_set(icons={"a": {**ARROW, "height": 9}}), "a")


@pytest.mark.parametrize(
    ("link", "corner"),
    [
        ({}, (0, 0)),
        ({"hFlip": True}, (0, 1)),
        ({"vFlip": True}, (1, 0)),
        ({"rotate": 1}, (0, 1)),  # clockwise
        ({"rotate": 2}, (1, 1)),
        ({"hFlip": True, "vFlip": True}, (1, 1)),
    ],
)
def test_aliases_turn_their_icon(link, corner):
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = 9
    turned = turn(pixels, icon_set(icons={"a": ARROW}, aliases={"b": {"parent": "a", **link}}), "b")
    assert turned[corner].tolist() == [9, 9, 9]


def test_chains_of_aliases_turn_one_after_the_other():
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = 9
    aliases = {"b": {"parent": "a", "hFlip": True}, "c": {"parent": "b", "rotate": 1}}
    turned = turn(pixels, icon_set(icons={"a": ARROW}, aliases=aliases), "c")
    assert turned[1, 1].tolist() == [9, 9, 9]


@pytest.mark.parametrize("colours", [2, 256, 4096])
def test_png_is_lossless_and_small(colours):
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (colours, 3), np.uint8)
    smooth = np.add.outer(np.arange(64), np.arange(64)) * colours // 128
    for pixels in (palette[rng.integers(0, colours, (64, 64))], palette[smooth]):
        packed = encode_png(pixels)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(packed)).convert("RGB")), pixels)
        reference = io.BytesIO()
        Image.fromarray(pixels).save(reference, "png", optimize=True)
        assert len(packed) <= reference.tell()


# Step 3: what is dropped.


def test_differences_are_mean_absolute_grey_levels():
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((2, 64, 64, 3), 255, np.uint8)
    white[1, :32] = 0
    np.testing.assert_allclose(differences(black, white), [255, 127.5])
    np.testing.assert_allclose(differences(white[0], black[None]), [255])


def test_near_pairs_equal_a_search_through_all():
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (6, 64, 64, 3), np.uint8)
    pixels = np.concatenate(
        [pixels, np.clip(pixels.astype(int) + rng.integers(-9, 10), 0, 255).astype(np.uint8)]
    )
    pixels[3, :8, :8] += 40
    everything = {
        (i, j): float(np.mean(np.abs(pixels[i].astype(float) - pixels[j])))
        for i in range(12)
        for j in range(i + 1, 12)
    }
    below = sorted(everything.values())[4]
    found = {(i, j): d for i, j, d in near_pairs(pixels, below)}
    assert found == pytest.approx({pair: d for pair, d in everything.items() if d < below})


def test_both_of_a_confusable_pair_go_within_a_set_only():
    drawings = [
        drawing("frown", "twemoji", 100),
        drawing("pout", "twemoji", 101),
        drawing("smile", "twemoji", 103),
        drawing("pout", "noto", 100),
        drawing("smile", "noto", 110),
    ]
    assert [pair[:2] for pair in confusable_pairs(drawings)] == [(0, 1)]
    assert drop_confusable(drawings) == drawings[2:]


def test_drawings_of_a_class_must_differ_across_sets_too():
    levels = {"noto": 0, "twemoji": 9, "fluent-emoji": 10, "emojione": 19, "fxemoji": 200}
    kept = distinct_drawings([drawing("moon", name, level) for name, level in levels.items()])
    assert [d.set_name for d in kept] == ["noto", "fluent-emoji", "fxemoji"]


def test_a_set_gives_one_drawing_its_own_of_the_class_first():
    man, woman, person = "1f468", "1f469", "1f9d1"
    drawings = [
        drawing("person", "twemoji", 0, "woman", woman),
        drawing("person", "noto", 1, "man", man),
        drawing("person", "noto", 2, "person", person),
        drawing("person", "twemoji", 3, "man", man),
    ]
    assert [(d.set_name, d.icon) for d in first_choices(drawings, person)] == [
        ("noto", "person"),
        ("twemoji", "man"),
    ]


def test_exceptions_drop_and_merge_and_must_still_apply():
    drawings = [drawing(name, "noto", icon=name) for name in ("cricket", "bat", "pout", "clock")]
    rows = [
        {"kind": "drop_drawing", "set": "noto", "name": "bat", "target": ""},
        {"kind": "drop_class", "set": "", "name": "clock", "target": ""},
        {"kind": "merge_class", "set": "", "name": "pout", "target": "frown"},
    ]
    assert [d.class_name for d in apply_exceptions(drawings, rows)] == ["cricket", "frown"]
    with pytest.raises(ValueError, match="ball"):
        apply_exceptions(drawings, [{"kind": "drop_class", "set": "", "name": "ball", "target": ""}])
    with pytest.raises(ValueError, match="forget"):
        apply_exceptions(drawings, [{"kind": "forget", "set": "", "name": "bat", "target": ""}])


# Step 4: what is large enough.


@pytest.mark.parametrize(
    ("sets", "enough"),
    [
        (["noto", "twemoji", "fluent-emoji", "emojione"], True),
        (["noto", "noto-v1", "twemoji", "fluent-emoji"], True),
        (["noto", "twemoji", "fluent-emoji"], False),  # three images
        (["noto", "noto-v1", "twemoji", "twemoji"], False),  # two cameras: noto's generations are one
    ],
)
def test_classes_need_four_images_of_three_cameras(sets, enough):
    assert large_enough([drawing("a", name) for name in sets]) is enough


def test_curate_applies_the_rules_in_order():
    sets = list(CAMERA_OF_SET)
    drawings = [drawing("b", name, 20 * i) for i, name in enumerate(sets)]
    drawings += [drawing("a", name, 20 * i + 10) for i, name in enumerate(sets[:4])]
    drawings += [drawing("c", name, 20 * i + 5) for i, name in enumerate(sets[:3])]  # too few
    kept = curate(drawings, {"a": "1f600", "b": "1f600", "c": "1f600"})
    assert [(d.class_name, d.set_name) for d in kept] == [
        *(("a", name) for name in sets[:4]),
        *(("b", name) for name in sets),
    ]


# Step 5: the split.


def test_families_are_never_split():
    families = [{"class": "cat", "family": "cats"}, {"class": "cat-face", "family": "cats"}]
    families += [{"class": "sun", "family": "sun"}]
    splits = [{"family": "cats", "split": "test"}, {"family": "sun", "split": "validation"}]
    sides = assign_splits(["cat", "sun", "cat-face"], families, splits)
    assert sides == {"cat": ("cats", "test"), "cat-face": ("cats", "test"), "sun": ("sun", "validation")}
    with pytest.raises(ValueError, match=r"families\.csv.*dog"):
        assign_splits(["dog"], families, splits)
    with pytest.raises(ValueError, match=r"splits\.csv.*sun"):
        assign_splits(["sun"], families, splits[:1])
    with pytest.raises(ValueError, match=r"splits\.csv.*left"):
        assign_splits(["sun"], families, [{"family": "sun", "split": "left"}])


# Step 6: writing, and the command.


def test_writing_twice_gives_the_same_bytes(tmp_path):
    drawings = [drawing("sun", name, 40 * i) for i, name in enumerate(CAMERA_OF_SET)]
    rows = build.index_rows(drawings, {"sun": ("sky", "train")})
    for folder in ("one", "two"):
        build.write(drawings, rows, tmp_path / folder)
    for name in (build.ARCHIVE, build.INDEX):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [build.INDEX, build.ARCHIVE]
    with zipfile.ZipFile(tmp_path / "one" / build.ARCHIVE) as archive:
        assert archive.namelist()[1] == "sun/twemoji.sun-twemoji.png"
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def write_packages(folder: Path) -> None:
    """Six packages with four classes of arrows, in the layout of npm."""
    shapes = {"a": "M0 0h8v8H0z", "b": "M8 0h8v8H8z", "c": "M0 8h8v8H0z", "d": "M8 8h8v8H8z"}
    characters = {"1f600": "a", "1f601": "b", "1f602": "c", "1f603": "d"}
    for level, (name, version) in enumerate(build.VERSIONS.items()):
        package = folder / "@iconify-json" / name
        package.mkdir(parents=True)
        colour = f"#{level * 48:02x}{level * 48:02x}{level * 48:02x}"
        icons = {key: {"body": f'<path d="{path}" fill="{colour}"/>'} for key, path in shapes.items()}
        (package / "icons.json").write_text(json.dumps({"icons": icons}))
        (package / "chars.json").write_text(json.dumps(characters if name in ("noto", "twemoji") else {}))
        (package / "package.json").write_text(json.dumps({"version": version}))


def test_the_whole_command_on_small_packages(tmp_path, monkeypatch, capsys):
    pytest.importorskip("resvg_py", reason="the extra emoji-build is not installed")
    write_packages(tmp_path / "node_modules")
    tables = {
        "names.csv": [],
        "exceptions.csv": [
            {"kind": "drop_drawing", "set": "noto-v1", "name": "d", "target": "", "reason": "x"}
        ],
        "families.csv": [{"class": key, "family": "f" + key} for key in "abcd"],
        "splits.csv": [{"family": "f" + key, "split": "train" if key < "c" else "test"} for key in "abcd"],
    }
    monkeypatch.setattr(build, "read_table", tables.__getitem__)
    arguments = [f"--packages={tmp_path / 'node_modules'}", f"--output={tmp_path / 'out'}"]
    assert build.main(arguments) == 0
    assert "4 classes, 23 images" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "out" / build.ARCHIVE) as archive:
        assert len(archive.namelist()) == 23


def test_missing_and_unreviewed_packages_are_named(tmp_path, capsys):
    arguments = [f"--packages={tmp_path / 'node_modules'}", f"--output={tmp_path / 'out'}"]
    assert build.main(arguments) == 1
    message = capsys.readouterr().err
    assert "@iconify-json/noto" in message
    assert "npm install" in message
    write_packages(tmp_path / "node_modules")
    package = tmp_path / "node_modules/@iconify-json/fxemoji/package.json"
    package.write_text(json.dumps({"version": "9.9.9"}))
    with pytest.raises(UserError, match=r"fxemoji is 9\.9\.9"):
        build.read_sets(tmp_path / "node_modules")


def test_reviewed_tables_are_sound():
    names = read_table("names.csv")
    assert len({(row["set"], row["icon"]) for row in names}) == len(names)
    assert {row["set"] for row in names} <= set(CAMERA_OF_SET)
    exceptions = read_table("exceptions.csv")
    assert all(row["reason"] for row in exceptions), "every exception says why"
    families = read_table("families.csv")
    assert len({row["class"] for row in families}) == len(families)
    splits = read_table("splits.csv")
    assert len({row["family"] for row in splits}) == len(splits)
    assert {row["family"] for row in families} == {row["family"] for row in splits}


@pytest.mark.slow
def test_the_shipped_set_can_be_built_again(tmp_path):
    packages = os.environ.get("EMOJI_PACKAGES")
    if not packages:
        pytest.skip("EMOJI_PACKAGES does not name a folder with the six npm packages")
    build.build(Path(packages), tmp_path)
    shipped = emoji.FOLDER
    assert (tmp_path / build.INDEX).read_bytes() == (shipped / build.INDEX).read_bytes()
    with zipfile.ZipFile(tmp_path / build.ARCHIVE) as new, zipfile.ZipFile(shipped / build.ARCHIVE) as old:
        assert new.namelist() == old.namelist()
        for name in old.namelist():
            # Pixels, for another zlib may pack the same pixels into other bytes.
            one, two = (np.asarray(Image.open(io.BytesIO(a.read(name))).convert("RGB")) for a in (new, old))
            np.testing.assert_array_equal(one, two, err_msg=name)
