"""Spoilt files of every kind are read or refused in one sentence, within seconds (tests/fuzz.py gives more of them)."""

from __future__ import annotations

from collections import Counter

from fuzz import run_commands, run_inputs


def test_spoilt_files_are_read_or_refused():
    counts: Counter[tuple[str, str]] = Counter()
    run_inputs(300, counts)
    assert sum(number for (_, said), number in counts.items() if said == "refused") > 100


def test_spoilt_files_end_commands_as_they_should():
    assert list(run_commands(3, Counter())) == []
