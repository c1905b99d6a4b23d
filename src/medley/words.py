"""What a word is, said once: for BM25, for the comparison of texts, and for what is written.

In: a text. Out: its words in one form. Texts are unified by Unicode's NFKC_Casefold: one form for composed and
decomposed letters (NFC and NFD), for full and half width, ligatures and superscripts (CO2 is CO2), lower case, and
nothing that is not seen (soft hyphens, joiners, marks of order). NFC would leave width and ligatures apart, which PDFs
and Japanese keyboards mix at will. A word is a run of letters, digits and combining marks: without the marks, the
vowel signs of Hindi or Thai would fall away and two words would be one.

Scripts that put no spaces between words are cut into characters, each with its marks; for search, two neighbours make
a term, as Lucene's CJKAnalyzer has it (Hangul too). That needs no dictionary and finds every word of two characters.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

import regex

_UNSPACED = r"""[[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Bopomofo}\p{Hangul}\p{Yi}
\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{New_Tai_Lue}\p{Tai_Le}\p{Tai_Tham}\p{Tai_Viet}\p{Balinese}\p{Javanese}]
&&[\p{L}\p{Nl}]]""".replace("\n", "")
_CHARACTER = rf"{_UNSPACED}\p{{M}}*"
_WORD = rf"[[\p{{L}}\p{{N}}\p{{M}}]--{_UNSPACED}]+"
CHARACTER = regex.compile(_CHARACTER, regex.V1)
"""A character of a script without spaces, with its marks."""
_WORDS = regex.compile(rf"{_CHARACTER}|{_WORD}", regex.V1)
_RUNS = regex.compile(rf"((?:{_CHARACTER})+)|{_WORD}", regex.V1)
_PLAIN_WORDS = re.compile(r"[a-z0-9]+")
_UNSEEN = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
_SIGNS = str.maketrans("™℠", "  ")
"""NFKC makes letters of them, and `Lipitor™` would be another word than `Lipitor`."""


def unified(text: str) -> str:
    """The text in the one form that is compared (NFKC_Casefold); punctuation and white space stay."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", _UNSEEN.sub("", text.translate(_SIGNS))).casefold()
    return unicodedata.normalize("NFKC", folded)


def words(text: str) -> list[str]:
    """The words of a text, unified; in scripts without spaces its characters."""
    found: list[str] = (_PLAIN_WORDS if text.isascii() else _WORDS).findall(unified(text))
    return found


def search_terms(text: str) -> list[str]:
    """What a text is found by: its words of two characters or more, and each two neighbours in unspaced scripts.

    A character that stands alone there is a term by itself.
    """
    if text.isascii():
        return [word for word in _PLAIN_WORDS.findall(text.lower()) if len(word) > 1]
    found: list[str] = []
    for match in _RUNS.finditer(unified(text)):
        if match[1] is None:
            found += [match[0]] if len(match[0]) > 1 else []
        else:
            characters = CHARACTER.findall(match[1])
            found += map("".join, pairwise(characters)) if len(characters) > 1 else characters
    return found
