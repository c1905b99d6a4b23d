"""What reaches the terminal: texts that others wrote are shown and never obeyed."""

from __future__ import annotations

import pytest

from medley import cli
from medley.progress import printable, progress, say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("over\rwritten\x08", r"over\rwritten\x08"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("abc\u202edcba\u2066x\u2069", r"abc\u202edcba\u2066x\u2069"),
        ("half a pair \ud83d", r"half a pair \ud83d"),
        (
            "two\nlines\tand ümläut, עברית\u200f, नमस्ते, 👩\u200d🔬",
            "two\nlines\tand ümläut, עברית\u200f, नमस्ते, 👩\u200d🔬",
        ),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_news_progress_and_errors_are_printable(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medley.progress.LINE_EVERY_S", -1.0)
    say("a\x1b[2J")
    with progress("b\x1b[2J", 2) as advance:
        advance(1)
    monkeypatch.setattr("sys.argv", ["medley", "status", "c\x1b[2J"])
    with pytest.raises(SystemExit):
        cli.main()
    monkeypatch.setattr("sys.argv", ["medley", "d\x1b[2J"])
    with pytest.raises(SystemExit):
        cli.main()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 4 and "\x1b" not in "".join(lines)
    for line, letter in zip(lines, "abcd", strict=True):
        assert rf"{letter}\x1b[2J" in line
