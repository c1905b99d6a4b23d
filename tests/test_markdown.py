"""Other people's words in Markdown stay what they are, by an independent parser."""

from __future__ import annotations

import html
import re

import pytest
import yaml

from medley.markdown import code, literal
from medley.merge.export import model_card

NASTY = [
    "a | b", "`code`", "**bold** _it_ __all__", "<script>alert(1)</script>", "[link](http://x)", "![i](x)", "# head",
    "- item", "1. item", "---", "a\n---\nb", "&lt;b&gt;", "back\\slash", "~~gone~~", "> quote", "\x1b[31m\u202e", "a_b_c",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_a_text_is_shown_as_it_is(text: str) -> None:
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    seen = reader.render(f"| a |\n|---|\n| {literal(text)} |\n")
    cells = re.findall(r"<td>(.*?)</td>", seen)
    shown = " ".join(text.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e").split())
    assert [html.unescape(cell) for cell in cells] == [shown] and "<script" not in seen
    alone = reader.render(literal(text)).strip()
    assert html.unescape(alone) == f"<p>{shown}</p>"
    inside = reader.render(f"| a |\n|---|\n| {code(text)} |\n")
    assert html.unescape(re.findall(r"<td><code>(.*?)</code></td>", inside)[0]) == shown


def test_names_and_licences_do_not_break_a_card() -> None:
    licence = "mit\nlibrary_name: evil\n---\n# Owned"
    experts = dict.fromkeys(NASTY, "abc")
    card = model_card(
        "t\n# Owned", base="b<script>", method="linear", experts=experts, weights={}, details={"dev": "x\n- y"},
        licences={"base": licence} | dict.fromkeys(NASTY, licence),
    )  # fmt: skip
    front = yaml.safe_load(re.split(r"(?m)^---$", card)[1])
    assert front["library_name"] == "sentence-transformers" and front["license"].startswith(
        "mit library_name"
    )
    lines = card.splitlines()
    assert "<script" not in card and not any(line.startswith("# Owned") for line in lines)
    start = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    rows = lines[start + 1 : start + 1 + len(NASTY)]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows)
