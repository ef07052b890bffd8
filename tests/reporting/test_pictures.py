import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hap2s_jax.errors import UserError
from hap2s_jax.reporting import pictures
from hap2s_jax.reporting.pictures import RIGHT, WRONG, contact_sheet, mosaic, retrievals

GREY = 128


def _images(*shape: int) -> np.ndarray:
    return np.full((*shape, 3), GREY, np.uint8)


def _count(path: Path, colour: str | tuple[int, int, int]) -> int:
    if isinstance(colour, str):
        colour = tuple(bytes.fromhex(colour[1:]))
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return int((pixels == np.asarray(colour)).all(axis=-1).sum())


def test_right_and_wrong_neighbours_wear_their_own_colour(tmp_path: Path) -> None:
    def frames(is_correct: list[list[bool]]) -> tuple[int, int]:
        path = tmp_path / "retrievals.png"
        retrievals(path, _images(2, 64, 64), _images(2, 3, 64, 64), is_correct)
        return _count(path, RIGHT), _count(path, WRONG)

    none, all_ = frames([[False] * 3] * 2), frames([[True] * 3] * 2)
    some = frames([[True, False, False], [True, True, False]])
    # The legend shows both marks always; six frames are to be shared.
    one = (all_[0] - none[0]) / 6
    assert one > 1000
    assert some[0] - none[0] == pytest.approx(3 * one, rel=0.01)
    assert some[1] - all_[1] == pytest.approx((none[1] - all_[1]) / 2, rel=0.01)


def test_colours_differ_for_the_colour_blind() -> None:
    """Simulated deuteranopia and protanopia (Vienot, Brettel and Mollon, 1999), and lightness alone."""
    rgb = np.array([list(bytes.fromhex(colour[1:])) for colour in (RIGHT, WRONG)]) / 255.0
    linear = rgb**2.2
    lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    deutan = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    protan = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])
    for lost in (deutan, protan):
        seen = (np.linalg.inv(lms) @ lost @ lms @ linear.T).T.clip(0, 1) ** (1 / 2.2)
        assert np.linalg.norm(seen[0] - seen[1]) > 0.4


@pytest.mark.parametrize("shape", [(64, 64), (256, 128), (20, 200), (1, 1)])
def test_any_shape_and_caption_is_drawn(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "deep" / "retrievals.png"
    retrievals(
        path,
        _images(3, *shape),
        _images(3, 1, *shape),
        np.ones((3, 1), bool),
        query_captions=["", "a very long name that does not fit in two lines whatever one does", "Ωμέγα"],
        neighbour_captions=[["x"], ["unbreakable" * 10], ["two words"]],
    )
    assert Image.open(path).format == "PNG"
    assert [file.name for file in path.parent.iterdir()] == ["retrievals.png"]


def test_images_of_many_sizes_on_a_contact_sheet(tmp_path: Path) -> None:
    images = [_images(h, w) for h, w in ((10, 20), (300, 40), (64, 64))]
    contact_sheet(images, ["one", "two", "three"], tmp_path / "sheet.png", title="t" * 300)
    contact_sheet(np.stack([images[2]] * 40), None, tmp_path / "many.png", columns=8)
    wide, high = Image.open(tmp_path / "many.png").size
    assert wide > high
    assert _count(tmp_path / "many.png", (GREY, GREY, GREY)) == 40 * pictures._TILE**2


def test_a_mosaic_shows_every_image_whole(tmp_path: Path) -> None:
    cells = np.array([[0, 0], [1, 0], [4, 7]])
    mosaic(_images(3, 64, 64), cells, tmp_path / "map.png")
    assert _count(tmp_path / "map.png", (GREY, GREY, GREY)) == 3 * 38 * 38


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    with pytest.raises(ValueError, match=r"query_images is .*; it should be uint8 \[q, h, w, 3\]"):
        retrievals(path, _images(2, 8, 8).astype(np.float32), _images(2, 3, 8, 8), np.ones((2, 3), bool))
    with pytest.raises(ValueError, match=r"they should agree in \[q, k\]"):
        retrievals(path, _images(2, 8, 8), _images(2, 3, 8, 8), np.ones((2, 2), bool))
    with pytest.raises(ValueError, match=r"they should be \[q\] and \[q\]\[k\] texts, with q = 2 and k = 3"):
        retrievals(path, _images(2, 8, 8), _images(2, 3, 8, 8), np.ones((2, 3), bool), query_captions=["one"])
    with pytest.raises(ValueError, match=r"captions are .*; they should be as many"):
        contact_sheet([_images(8, 8)], [], path)
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], None, path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        contact_sheet([_images(8, 8)], None, tmp_path / "file" / "x.png")
    assert not path.exists()


def test_a_failed_picture_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    contact_sheet([_images(8, 8)], None, path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        contact_sheet([_images(16, 8)], None, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_are_the_same_every_time_and_from_threads(tmp_path: Path) -> None:
    def draw(name: str) -> None:
        retrievals(tmp_path / name, _images(2, 9, 9), _images(2, 2, 9, 9), np.eye(2, dtype=bool))

    threads = [threading.Thread(target=draw, args=(f"{i}.png",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(tmp_path / f"{i}.png").read_bytes() for i in range(3)}) == 1


def test_captions_are_escaped_and_not_measured_without_end():
    from hap2s_jax.reporting import captions

    lines = captions._wrapped("\x1b[2J\udc80 " + "x" * 10**7, captions.font(14), 10_000)
    assert lines[0].startswith("\\x1b[2J\\udc80 x")
    assert sum(map(len, lines)) < 600
