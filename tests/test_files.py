"""Reading: byte order marks, bounds, and one sentence for whatever is no file, no text or no JSON."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path

import pytest

from medley import text_file
from medley.collections import load_collection
from medley.documents import shards_of
from medley.errors import InputError
from medley.files import read_json, read_jsonl, read_object
from medley.model_name import resolve_base
from medley.pairs import read_pairs
from medley.prompt_file import read_prompt
from medley.recipe import load_recipe
from medley.text_file import read_lines, read_text
from small import write_collection, write_lines, write_recipe

MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_part_of_any_text(tmp_path, tiny_model_folder):
    folder = write_collection(tmp_path / "coll")
    wanted = load_collection(f"{folder}:test")
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny_model_folder, folder)
    same = load_recipe(recipe)
    for path in (*folder.rglob("*.*"), recipe):
        path.write_bytes(MARK + path.read_bytes())
    found = load_collection(f"{folder}:test")
    assert list(found.corpus) == list(wanted.corpus) and found.corpus[0] == wanted.corpus[0]
    assert (found.queries, found.judgements) == (wanted.queries, wanted.judgements)
    assert load_recipe(recipe) == same
    pairs, prompt = tmp_path / "pairs.jsonl", tmp_path / "prompt.txt"
    row = json.dumps({"query": "q", "positive": "p"}).encode()
    pairs.write_bytes(MARK + row + b"\n" + MARK + row)  # as `cat` leaves two such files
    assert [pair.query for pair in read_pairs(pairs)] == ["q", "q"]
    prompt.write_bytes(MARK + b"Ask {query}")
    assert read_prompt(prompt, ["query"]) == "Ask {query}"
    (tmp_path / "one.json").write_bytes(MARK + row)
    assert read_json(tmp_path / "one.json")["query"] == "q"


def test_utf16_is_read_as_a_whole_and_refused_by_the_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "é"}\n', encoding="utf-16")
    assert read_text(path) == '{"a": "é"}\n' and read_json(path) == {"a": "é"}
    for read in (read_jsonl, read_lines):
        with pytest.raises(InputError, match=r"x.jsonl: is UTF-16; save the file as UTF-8"):
            list(read(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": "x \\ud83d"}', r"holds \\ud83d, half of a character \(a lone surrogate\).*; take it out"),
        ('{"\\uDC00": 1}', r"holds \\udc00, half"),
        ('{"a": ' + "[" * 50_000 + "]" * 50_000 + "}", r"nested deeper than 100 levels"),
        ('{"a": ' + "[" * 101 + "]" * 101 + "}", r"nested deeper than 100 levels"),
        ('{"a": ' + "9" * 5000 + "}", r"holds a number of thousands of digits"),
    ],
)
def test_json_that_later_steps_would_stumble_over(tmp_path, text, message):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n' + text)
    with pytest.raises(InputError, match=rf"x.jsonl:2: {message}"):
        list(read_jsonl(path))
    path.write_text(text)
    with pytest.raises(InputError, match=rf"x.jsonl: {message}"):
        read_json(path)


def test_whole_characters_and_depth_that_is_usual_are_read(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"a": "\U0001f600", "b": [[[]]] * 200}])
    assert [row["a"] for _, row in read_jsonl(path)] == ["\U0001f600"] == [read_json(path)["a"]]


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have(tmp_path, constant):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"a": {constant}}}')
    with pytest.raises(InputError, match=rf"x.jsonl:1: {constant} is no JSON; write null"):
        list(read_jsonl(path))
    assert "a" in read_json(path), "configurations of models hold them (Mamba 2's time_step_limit)"


def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "MAX_LINE_BYTES", 2**20)
    path = tmp_path / "x.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b'{"a": 1}\n')
        for _ in range(200):
            stream.write(b"\0" * 2**20)
    begin = time.monotonic()
    with pytest.raises(
        InputError, match=r"x.jsonl.gz:2: the line is longer than 1 MiB; is this the right file"
    ):
        list(read_jsonl(path))
    assert time.monotonic() - begin < 2


def test_gzip_that_is_cut_or_none(tmp_path):
    path = tmp_path / "x.jsonl.gz"
    packed = gzip.compress(b'{"a": 1}\n' * 100)
    for content in (
        packed[:-9],
        packed[:12] + b"\xff" * 20 + packed[32:],
        b"no gzip at all",
        packed + b"tail",
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x.jsonl.gz: not a complete gzip file"):
            list(read_jsonl(path))


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    places = {
        tmp_path: r"is a folder where a file is needed",
        tmp_path / "pipe": r"is a pipe or a device.*save it as a file first",
        Path("/dev/zero"): r"/dev/zero: is a pipe or a device",
        tmp_path / "none": r"none: no such file; check the path",
        tmp_path / "none/none": r"no such file",
        tmp_path / ("n" * 300): r"cannot be read \(File name too long\)",
        tmp_path / "a\0b": r"no such file",
    }
    for path, message in places.items():
        for read in (
            read_text,
            read_json,
            lambda path: list(read_jsonl(path)),
            lambda path: list(read_lines(path)),
        ):
            with pytest.raises(InputError, match=message):
                read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{}])
    path.chmod(0)
    with pytest.raises(InputError, match=r"x.jsonl: cannot be read \(Permission denied\)"):
        list(read_jsonl(path))


@pytest.mark.parametrize(
    ("text", "found"), [("[]", "a list"), ("null", "null"), ("7", "a number"), ('"x"', "a string")]
)
def test_a_document_that_is_no_object(tmp_path, text, found):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(
        InputError, match=rf"x.json: expected a JSON object, found {found}; is this the right file"
    ):
        read_object(path)


@pytest.mark.parametrize("name", ["n" * 300, "~nobody-of-this-name/x"])
def test_a_name_that_no_file_can_have_is_told_wherever_names_are_read(name):
    for read in (
        load_collection,
        resolve_base,
        lambda name: read_pairs(Path(name)),
        lambda name: shards_of(Path(name)),
    ):
        with pytest.raises(InputError, match=r": cannot be looked up \(.*\); check the path"):
            read(name)


def test_a_message_is_one_line_and_its_middle_is_left_out_where_it_is_endless():
    said = str(InputError(f"x.jsonl:1: two\r\nlines and {'a' * 100_000}; mend it."))
    assert (
        said.startswith("x.jsonl:1: two lines and aaa")
        and said.endswith("aaa; mend it.")
        and len(said) < 1_000
    )
