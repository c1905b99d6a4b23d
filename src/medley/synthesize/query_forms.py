"""What a query looks like, by simple English patterns: it asks for a number, or is a statement; its content words.

In: a query's text. Out: yes or no. A pattern that errs on the side of no costs a kind of negative for that row; one
that errs on the side of yes makes a false negative.
"""

from __future__ import annotations

import re

from medley.synthesize.words import FUNCTION_WORDS

_ASKS_NUMBER = re.compile(
    r"\b(how (many|much|long|often|old|far|high|deep|hot|cold|big|large|heavy|fast|soon|late|early)|when|"
    r"what (age|year)|percent|percentage|per cent|proportion|ratio|dose|dosage|half-life|temperature|"
    r"threshold|cut-?off|number of|duration|interval|frequency|altitude|depth|distance|density|voltage|pressure|mg)\b",
    re.IGNORECASE,
)
_IS_CLAIM = re.compile(
    r".*[a-z]\.$|(is|are|was|were|do|does|did|can|could|should|must|will|would|has|have)\b",
    re.IGNORECASE | re.DOTALL,
)


def asks_for_number(query: str) -> bool:
    """Whether a query asks for a quantity or a date: only there does another number change the answer."""
    return _ASKS_NUMBER.search(query) is not None


def is_claim(query: str) -> bool:
    """A statement, or a question to be answered with yes or no: only there does an opposite change the answer."""
    return _IS_CLAIM.match(query.strip()) is not None


def content_words(text: str) -> list[str]:
    """The words of a text that carry its content, in order, in lower case."""
    words = re.findall(r"\w+(?:[-'’]\w+)*", text.lower())
    return [word for word in words if word not in FUNCTION_WORDS]
