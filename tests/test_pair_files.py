"""Pairs files of every kind hold the same rows; a folder with splits is named with one of them."""

from __future__ import annotations

import csv
import gzip
import json

import pytest

from medley.errors import PairsError
from medley.fingerprint import fingerprint_path
from medley.pairs import read_pairs
from medley.pipeline.inputs import Inputs
from medley.recipe import load_recipe
from small import medley, training_rows, write_collection, write_lines, write_recipe

ROWS = [
    {"query": "first, or second?", "positive": 'say "yes";\nthen go', "negatives": ["n1", "n 2"], "instruction": "Find"},
    {"query": "-0 café", "positive": "p", "negatives": [], "instruction": ""},
]  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """A DatasetDict with splits train and test."""
    import datasets

    parts = {"train": ROWS, "test": [{**ROWS[1], "query": "held out"}]}
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()}).save_to_disk(
        tmp_path / "saved"
    )
    return tmp_path / "saved"


def as_table(path, separator, rows=ROWS, **options):
    with gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=separator, **options)
        writer.writeheader()
        writer.writerows({**row, "negatives": json.dumps(row["negatives"])} for row in rows)
    return path


@pytest.mark.parametrize(
    ("name", "separator"),
    [("p.csv", ","), ("p.csv", ";"), ("p.tsv", "\t"), ("p.csv", "\t"), ("p.csv.gz", ",")],
)
def test_tables_are_read_as_json_lines_are(tmp_path, name, separator):
    wanted = read_pairs(write_lines(tmp_path / "p.jsonl", ROWS))
    path = as_table(tmp_path / name, separator)
    assert read_pairs(path) == wanted
    if path.suffix != ".gz":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert read_pairs(path) == wanted


def test_tables_have_the_layouts_of_json_lines_too(tmp_path):
    path = tmp_path / "p.csv"
    long = "word " * 40_000  # beyond the csv module's own bound
    path.write_text(f"anchor,positive,negative_2,negative_1\r\nq,{long},b,a\r\n\r\nq2,p,,c\r\n")
    first, second = read_pairs(path)
    assert (first.query, first.positive, first.negatives) == ("q", long, ("a", "b"))
    assert second.negatives == ("c",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "question,answer\nq,p\n",
            r"p.csv:1: no columns named query and positive \(found: question,answer\)",
        ),
        (
            "query,positive\nq,p\nq,p,x\n",
            r"p.csv:3: 3 cells, and the first line names 2 columns; put quotation",
        ),
        ("query,positive\nq\n", r"p.csv:2: 1 cells, and the first line names 2 columns"),
        ('query,positive\n"q,p\n', r"p.csv:2: the table breaks off here"),
        ("query,positive,query\nq,p,r\n", r"p.csv:1: two columns are named 'query'"),
        (
            "query,positive,negatives\nq,p,n1|n2\n",
            r"p.csv:2: negatives: .*in a table negatives is JSON, such as",
        ),
        ("query,positive,negatives\nq,p,\"['a']\"\n", r"p.csv:2: negatives: not valid JSON"),
        ("query,positive\nq,\n", r"p.csv:2: positive is empty"),
        ("query,positive\n", r"p.csv: holds no rows"),
        ("", r"p.csv: holds no rows"),
        ("query,positive\nq,\xff\n", r"p.csv:2: byte 2 of the line is not UTF-8"),
    ],
)
def test_names_what_is_wrong_in_a_table(tmp_path, text, message):
    path = tmp_path / "p.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PairsError, match=message):
        read_pairs(path)


def test_a_split_of_a_saved_dict_is_named_behind_a_colon(saved, tmp_path):
    assert read_pairs(tmp_path / "saved:train") == read_pairs(write_lines(tmp_path / "p.jsonl", ROWS))
    assert [pair.query for pair in read_pairs(tmp_path / "saved:test")] == ["held out"]
    for spec, message in (
        ("saved", r"saved: holds the splits train, test; name one, as in .*saved:train"),
        ("saved:dev", r"saved:dev: no split 'dev'; there are train, test"),
        ("saved/train:test", r"saved/train holds no splits; name the folder alone"),
        ("nothing:train", r"nothing:train: no such file"),
    ):
        with pytest.raises(PairsError, match=message):
            read_pairs(tmp_path / spec)
    (saved / "dataset_dict.json").write_text("{}")
    with pytest.raises(PairsError, match="names no splits"):
        read_pairs(tmp_path / "saved:train")


def test_a_split_is_a_source_of_a_recipe_known_by_its_content(
    saved, tmp_path, tiny_model_folder, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    collection = write_collection(tmp_path / "coll")
    path = write_recipe(
        tmp_path / "r.yaml", tiny_model_folder, collection, **{"sources.a": {"pairs": "saved:train"}}
    )
    place = load_recipe(path).sources["a"].pairs
    assert place == f"{saved}:train", "absolute, so that the run folder can be moved about"
    before = Inputs().pairs_file(place)
    (saved / "test" / "state.json").write_text("{}")
    assert Inputs().pairs_file(place) == before == fingerprint_path(saved / "train"), (
        "another split does not count"
    )
    import datasets

    datasets.Dataset.from_list(ROWS[:1]).save_to_disk(saved / "train2")
    for file in (saved / "train2").iterdir():
        file.replace(saved / "train" / file.name)
    assert Inputs().pairs_file(place) != before


def test_commands_take_a_split_and_a_table(tmp_path):
    import datasets

    rows = training_rows("train_a")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "saved")
    table = as_table(tmp_path / "p.tsv", "\t", rows)
    corpus = write_collection(tmp_path / "coll")
    for number, pairs in enumerate((f"{tmp_path}/saved:train", table)):
        out = tmp_path / f"m{number}.jsonl"
        assert medley("mine", "--pairs", pairs, "--corpus", corpus, "--out", out).code == 0
    assert (tmp_path / "m0.jsonl").read_bytes() == (tmp_path / "m1.jsonl").read_bytes()
    done = medley("mine", "--pairs", tmp_path / "saved", "--out", tmp_path / "no.jsonl")
    assert done.code == 2 and "holds the splits train; name one" in done.err


@pytest.mark.parametrize("broken", ["cut", "empty", "text", "folder"])
def test_a_broken_data_set_is_one_sentence(tmp_path, broken):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    whole = path.read_bytes()
    if broken == "folder":
        path.unlink()
        path.mkdir()
        (path / "state.json").write_text("[]")
    else:
        path.write_bytes(
            {"cut": whole[: len(whole) // 2] + whole[-40:], "empty": b"", "text": b"hello"}[broken]
        )
    with pytest.raises(
        PairsError, match=r"p.parquet: cannot be read as a data set \(.*\); write it again."
    ) as refusal:
        read_pairs(path)
    assert "\n" not in str(refusal.value)
