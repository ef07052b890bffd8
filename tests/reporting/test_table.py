import io

import numpy as np
import pytest

from hap2s_jax.reporting.table import print_metrics, to_markdown

ROWS = {
    "raw pixels": {"mAP": 0.2031, "queries": 2900},
    "trained [HAP2S_P]": {
        "mAP": np.float32(0.4125),
        "recall@1": 1.0,
        "queries": np.int64(2900),
        "seconds": 281.25,
    },
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_text_when_not_a_terminal() -> None:
    out = io.StringIO()
    print_metrics(ROWS, title="Test classes", file=out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "Test classes"
    assert lines[1].split() == ["mAP", "queries", "recall@1", "seconds"]
    assert lines[3].split() == ["raw", "pixels", "0.203", "2,900", "-", "-"]
    assert lines[4].split() == ["trained", "[HAP2S_P]", "0.412", "2,900", "1.000", "281.2"]
    assert out.getvalue().isascii()
    assert "\x1b" not in out.getvalue()


def test_columns_choose_and_order() -> None:
    out = io.StringIO()
    print_metrics(ROWS, columns=["recall@1", "mAP", "nmi"], file=out)
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["recall@1", "mAP", "nmi"]
    assert lines[3].split()[2:] == ["1.000", "0.412", "-"]


@pytest.mark.parametrize("width", [40, 60, 200])
def test_on_a_terminal_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = Terminal()
    print_metrics(ROWS, title="Test classes", file=out)
    text = out.getvalue()
    for word in ("mAP", "recall@1", "queries", "seconds", "281.2", "0.412", "trained [HAP2S_P]"):
        assert word in text
    assert "…" not in text
    assert text.count("╭") == (1 if width == 200 else text.count("╰"))


def test_markdown() -> None:
    assert to_markdown({"a|b": {"mAP": 0.5}, "c": {"n": 3}}) == (
        "|  | mAP | n |\n| --- | ---: | ---: |\n| a\\|b | 0.500 | - |\n| c | - | 3 |\n"
    )


def test_no_rows() -> None:
    out = io.StringIO()
    print_metrics({}, file=out)
    print_metrics({"untrained": {}}, file=out)
    assert "untrained" in out.getvalue()
