"""YAML: read as people mean it, and refused with the line before it costs time."""

from __future__ import annotations

import time

import pytest
import yaml

from medley.errors import RecipeError
from medley.merge.settings import read_merge_file
from medley.prompts.library import read_library
from medley.recipe import load_recipe
from medley.synthesize.variants import read_variants
from medley.yaml_file import dump_yaml, parse_yaml


def test_yaml_1_1_has_no_traps_left():
    text = """
no: yes
on: off
1: 010
2026-11-28: 2026-13-45
rate: 1e-3
time: 12:30:45
hex: 0x1F
numbers: [1, -2, 0, 1.5, .5, 1., 1e9, +3]
words: [true, False, ~, null, "", '1']
"""
    assert parse_yaml(text, "x") == {
        "no": "yes", "on": "off", "1": "010", "2026-11-28": "2026-13-45", "rate": 0.001, "time": "12:30:45", "hex": 31,
        "numbers": [1, -2, 0, 1.5, 0.5, 1.0, 1e9, 3], "words": [True, False, None, None, "", "1"],
    }  # fmt: skip


def test_what_is_written_is_read_back():
    value = {
        "a": [1, 2.5e-7, True, None, "no", "1e-3", "012", "12:30", "2026-11-28", "<<", "a\nb"],
        "no": {"x": {}},
    }
    assert parse_yaml(dump_yaml(value), "x") == value == yaml.safe_load(dump_yaml(value))


def test_anchors_and_merges_are_read():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [*a, {z: 4}]}\nd: [*a, *a]\n"
    assert parse_yaml(text, "x") == {
        "a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2, "z": 4}, "d": [{"x": 1, "y": 2}] * 2,
    }  # fmt: skip


LAUGHS = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 200))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"f.yaml:\d+: not valid YAML \(unfolds into more than 100,000 values\)"),
        (MERGES, r"unfolds into more than 100,000 values"),
        (CHAIN, r"nested deeper than 100 levels"),
        ("a: &a [*a]", r"f.yaml:1: .*an alias inside the very thing"),
        ("x: " + "[" * 100_000, r"nested deeper than 100 levels"),
        ("x: " + "{a: " * 100_000, r"nested deeper than 100 levels"),
        ("- " * 100_000, r"nested deeper than 100 levels"),
        ("".join(" " * i + "a:\n" for i in range(1300)), r"nested deeper than 100 levels"),
        ("a" * (2**20 + 1), r"longer than 1,048,576 characters"),
        ("a: 1\nb: 2\na: 3\n", r"f.yaml:3: .*the key 'a' stands twice; keep one"),
        ("a: {b: 1, b: 1}", r"f.yaml:1: .*the key 'b' stands twice"),
        ("? [a]\n: 1\n", r"f.yaml:1: .*a key is a name"),
        ("a: !!int x", r"f.yaml:1: .*the tag tag:yaml.org,2002:int does not fit 'x'"),
        ("a: !!python/object/apply:os.system [ls]", r"the tag .*os.system is not known"),
        ("a: !!timestamp x", r"the tag .*timestamp does not fit"),
        ("a: !!set {x, y}", r"the tag .*set is not known"),
        ('a: "x \\ud83d"', r"f.yaml:1: .*holds \\ud83d, half of a character"),
        ("a: [1", r"f.yaml:\d: not valid YAML \(expected ',' or ']'"),
        ("a: \x07", r"f.yaml: not valid YAML \(unacceptable character #x0007: special characters are not allowed\)"),
        ("a: *b", r"f.yaml:1: .*undefined alias"),
        ("a: 1\n---\nb: 1\n", r"f.yaml:2: .*but found another document"),
        ("%YAML 9.9\n---\na: 1", r"not valid YAML"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [load_recipe, read_merge_file, read_variants, read_library])
def test_refusals_name_the_line_and_take_no_time(tmp_path, text, message, read):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    begin = time.monotonic()
    with pytest.raises(Exception, match=message) as refusal:
        read(path)
    assert getattr(refusal.value, "exit_code", None) == 2 and "\n" not in str(refusal.value)
    assert time.monotonic() - begin < 3


def test_numbers_where_a_text_is_needed_are_told_so(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("name: 2024\n")
    with pytest.raises(
        RecipeError, match=r"name: a text is needed, and 2024 is none by YAML's rules; put it in quo"
    ):
        load_recipe(path)
