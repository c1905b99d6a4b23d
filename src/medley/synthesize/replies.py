"""From a language model's reply to a usable text, or to the name of what is wrong with it.

Recognised: `rejected` and `over_budget` (no reply), `only_reasoning`, `truncated`, `empty`, `refusal`, `commentary`
(talk about the text instead of the text), `copy` (of a text that was shown), `wrong_language` and `too_short`. What can
be mended is: thinking blocks, a lead-in such as `Sure! Here is a passage:`, code fences and quotation marks around the
whole go.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medley.llm import Reply, bare
from medley.synthesize.language import other_language
from medley.words import words

COPY_SHARE = 0.8
"""A text is a copy when this share of its word 5-grams stands in a text that was shown."""
_LEAD = re.compile(
    r"^\W*(?:(?:(?:sure|certainly|of course|absolutely|okay|ok)\W[^\n:]{0,80}?)?"
    r"(?:here(?:'s| is| are|’s)|below is|this is)\b[^\n:]{0,120}:[*_]{0,2}\s*|"
    r"(?:new |generated |synthetic )?(?:hard )?(?:negative )?"
    r"(?:passage|negative|document|query|question|output|answer)[*_]{0,2}\s?:[*_]{0,2}\s*|"
    r"(?:sure|certainly|of course|absolutely)\s*(?:[!.,]\s*\n|!\s))",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^\W*(?:i(?:'|’)?m (?:very |so )?sorry|i am (?:very )?sorry|sorry,|i apologi[sz]e|unfortunately,? i |"
    r"i (?:can(?:'|’)?t|cannot|can not|won(?:'|’)?t|will not|am unable|am not able|(?:must|have to) decline)|"
    r"i(?:'|’)m (?:unable|not able)|as an? (?:ai|large language|language)|"
    r"it (?:would be|is) (?:not appropriate|inappropriate)|"
    r"(?:es )?tut mir (?:sehr )?leid|entschuldigung,|ich kann (?:diese|dieser|dabei|ihnen|dir|das) [^.]{0,40}nicht|"
    r"(?:je suis )?désolée?,|je ne peux pas|lo siento|no puedo (?:ayudar|generar|crear|escribir|proporcionar)|"
    r"mi dispiace|non posso (?:aiutar|generar|crear|scriver)|desculpe|não posso (?:ajudar|gerar|criar|escrever)|"
    r"het spijt me|извините|к сожалению, я|我(?:很)?(?:抱歉|无法|不能)|抱歉|申し訳)",
    re.IGNORECASE,
)
_COMMENTARY = re.compile(
    r"^\W*(?:here(?:'s| is|’s)|below is) (?:a|an|the|one|your|my) [^.\n]{0,60}(?:passage|negative|document|query)\b|"
    r"\bas an? (?:ai|(?:large )?language model|ai (?:language model|model|assistant)),? i\b|"
    r"\b(?:hard[- ]negative|mined negative|the positive passage|original passage|"
    r"(?:this|the above|the) (?:passage|text|document) (?:does not|doesn(?:'|’)t|avoids?|shares?|is designed|"
    r"was written|is (?:relevant|related|similar))|(?:answers?|answering) the query|"
    r"the (?:given|original|user(?:'|’)s) query|"
    r"i(?:(?:'|’)ve)? (?:have )?(?:written|created|generated|kept|avoided|made sure)|let me know|"
    r"hope this helps)|\n\W{0,4}(?:note|explanation|rationale|reasoning)\W{0,3}:",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Checked:
    """A cleaned text, or an empty one and what is wrong with the reply."""

    text: str
    problem: str = ""


def check_reply(reply: Reply, shown: Sequence[str], *, least_words: int = 8) -> Checked:
    """Clean a reply and judge it; `shown` are the texts that it must not copy, and the first of them is in the
    language that it must be in.
    """
    if reply.problem:
        return Checked("", reply.problem)
    text = clean(reply.text)
    if not re.search(r"\w", text):
        return Checked("", "empty")
    if _REFUSAL.match(text):
        return Checked("", "refusal")
    if _COMMENTARY.search(text) and not any(_COMMENTARY.search(other) for other in shown):
        return Checked("", "commentary")
    if any(is_copy(text, other) for other in shown):
        return Checked("", "copy")
    if shown and other_language(text, shown[0]):
        return Checked("", "wrong_language")
    if len(words(text)) < least_words:
        return Checked("", "too_short")
    return Checked(text)


def clean(text: str) -> str:
    """The text itself, without thinking, fences, a leading `Here is ...:` or quotation marks around it."""
    text = bare(text)
    for _ in range(2):
        text = _LEAD.sub("", text, count=1).strip()
    quoted = re.fullmatch(r"[\"“'‘«*]{1,3}(.*?)[\"”'’»*]{1,3}", text, re.DOTALL)
    if quoted and not re.search(r"[\"“”«»]", quoted[1]):
        text = quoted[1].strip()
    return text


def is_copy(text: str, other: str) -> bool:
    """Whether a text equals another but for case and punctuation, or consists mostly of its 5-grams."""
    mine, theirs = words(text), words(other)
    if mine == theirs:
        return True
    if len(mine) < 5 or len(theirs) < 5:
        return False
    grams = {tuple(theirs[i : i + 5]) for i in range(len(theirs) - 4)}
    mine_grams = [tuple(mine[i : i + 5]) for i in range(len(mine) - 4)]
    return sum(gram in grams for gram in mine_grams) >= COPY_SHARE * len(mine_grams)
