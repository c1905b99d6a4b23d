"""Raw text: what cannot be read is named and counted, and does not cost the rest."""

from __future__ import annotations

import pytest

from medley.documents import Document, Place, read_documents, shards_of
from medley.errors import CollectionError
from small import write_lines


def texts(source):
    return [document.text for document, _ in read_documents(shards_of(source))]


def test_files_that_cannot_be_read_are_named_counted_and_left_out(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt").write_text("two", encoding="utf-16")
    (tmp_path / "d.md").write_text(" ")
    assert texts(tmp_path) == ["one", "two"]
    assert capsys.readouterr().err == (
        f"left out: {tmp_path}/b.txt: byte 3 is not UTF-8; save the file as UTF-8.\n"
        "1 of 4 files cannot be read and are left out\n1 documents without any text are left out\n"
    )
    with pytest.raises(CollectionError, match=r"b.txt: byte 3 is not UTF-8"):
        texts(tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 7}, r"d.jsonl:2: has no `text`"),
        ({"text": "x", "sections": 7}, r"d.jsonl:2: sections is a number; write a list of objects"),
        ({"text": "x", "sections": [7]}, r"d.jsonl:2: a section is not an object"),
    ],
)
def test_rows_that_cannot_be_read_end_the_work(tmp_path, row, message):
    path = write_lines(tmp_path / "d.jsonl", [{"text": "one"}, row])
    write_lines(tmp_path / "e.jsonl", [{"text": "two"}])
    with pytest.raises(CollectionError, match=message):
        texts(tmp_path)
    assert next(read_documents([path])) == (Document("one"), Place(0, 1, len('{"text": "one"}\n')))


def test_broken_parquet_is_one_sentence(tmp_path):
    for content in (b"", b"PAR1 and no more"):
        (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(
            CollectionError, match=r"x.parquet: cannot be read as Parquet \(.*\); write it again"
        ):
            texts(tmp_path / "x.parquet")
