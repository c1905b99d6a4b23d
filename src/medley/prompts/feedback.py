"""Feedback that teaches: where a query's relevant passage came, what came before it, and what tells them apart.

In: a query under an instruction. Out: text for the language model that reflects on the instruction. Scores alone would
say that it failed, not how.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medley.collections import Passage
from medley.prompts.scoring import Scorer

SHOWN = 3
"""Passages shown of those that came before the relevant one."""
SHOWN_WORDS = 80
TERMS = 8
_STOPWORDS = (
    "a an and are as at be by can did do does for from had has have how if in into is it its may more not of on or "
    "than that the their these they this those to was we were what when where which who why will with"
)
_STOP = frozenset(_STOPWORDS.split())


@dataclass(frozen=True)
class Failure:
    """A query, its best relevant passage with its rank (from 1), and the first passages that came before it."""

    query: str
    positive: Passage
    rank: int
    before: tuple[Passage, ...]

    @property
    def failed(self) -> bool:
        """Whether any passage came before."""
        return self.rank > 1


def look_at(scorer: Scorer, instruction: str, row: int) -> Failure:
    """Rank all passages of its dev set for one query. Ties go to the passage id that sorts first."""
    query = scorer.queries[row]
    similarities_D = scorer.similarities(instruction, row)
    relevant = set(query.dev.relevant[query.row])
    order = np.argsort(-similarities_D, kind="stable")
    rank = next(place for place, column in enumerate(order) if int(column) in relevant)
    before = tuple(query.dev.passages[int(column)] for column in order[: min(rank, SHOWN)])
    return Failure(query.text, query.dev.passages[int(order[rank])], rank + 1, before)


def in_words(failure: Failure) -> str:
    """What the language model reads about one query."""
    lines = [f"Query: {failure.query}"]
    if not failure.failed:
        lines.append(f"The relevant passage came first: {_short(failure.positive)}")
        return "\n".join(lines)
    lines.append(f"Relevant passage, on rank {failure.rank}: {_short(failure.positive)}")
    lines += [f"Wrongly before it, on rank {n}: {_short(p)}" for n, p in enumerate(failure.before, start=1)]
    return "\n".join([*lines, "What tells them apart:", *(f"- {line}" for line in distinctions(failure))])


def distinctions(failure: Failure) -> list[str]:
    """How the relevant passage differs from those before it, as far as words and lengths show."""
    query, good = _terms(failure.query), _terms(failure.positive.full_text)
    wrong = [_terms(passage.full_text) for passage in failure.before]
    anywhere = set().union(*map(set, wrong)) if wrong else set()
    lines = []
    only_good = [word for word in query if word in set(good) and word not in anywhere]
    only_wrong = [word for word in query if word not in set(good) and word in anywhere]
    neither = [word for word in query if word not in set(good) and word not in anywhere]
    if only_good:
        lines.append(f"words of the query in the relevant passage only: {', '.join(only_good[:TERMS])}")
    if only_wrong:
        lines.append(f"words of the query in the wrong passages only: {', '.join(only_wrong[:TERMS])}")
    if neither:
        lines.append(f"words of the query in none of them: {', '.join(neither[:TERMS])}")
    own = [word for word in dict.fromkeys(good) if word not in anywhere and word not in query]
    if own:
        lines.append(f"the relevant passage speaks of: {', '.join(own[:TERMS])}")
    theirs = [
        w for w in dict.fromkeys(w for terms in wrong for w in terms) if w not in set(good) | set(query)
    ]
    if theirs:
        lines.append(f"the wrong passages speak of: {', '.join(theirs[:TERMS])}")
    length = len(failure.positive.full_text.split())
    mean = np.mean([len(passage.full_text.split()) for passage in failure.before])
    if length > 2 * mean or mean > 2 * length:
        lines.append(f"the relevant passage has {length} words, the wrong ones {mean:.0f} on average")
    return lines or ["neither words nor length do; the meaning must"]


def _terms(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+(?:-[^\W_]+)*", text.lower())
    return list(dict.fromkeys(word for word in words if word not in _STOP and len(word) > 1))


def _short(passage: Passage) -> str:
    words: Sequence[str] = passage.full_text.split()
    return " ".join(words[:SHOWN_WORDS]) + (" ..." if len(words) > SHOWN_WORDS else "")
