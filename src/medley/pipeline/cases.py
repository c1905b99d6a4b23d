"""Cases for the report: the test queries that merged wins and loses most against the base, with their passages.

In: results of both, collections. Out: failures.json in the run folder, a list of cases, most changed first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medley.collections import Collection

FAILURES = "failures.json"
EACH_WAY = 150
"""Queries that are kept on either side."""
RELEVANT = 2
"""Relevant passages shown with each query."""
LONGEST = 420
"""Characters of a passage that are kept."""
METRIC = "ndcg_at_10"


def changed_cases(
    before: Mapping[str, Any], after: Mapping[str, Any], collections: Mapping[str, Collection]
) -> list[dict[str, Any]]:
    """The queries that changed most, each with query, scores, the best judged passages and what came first."""
    changes = sorted(_changes(before, after, collections), key=lambda case: (-abs(case[0]), case[1], case[2]))
    won = [case for case in changes if case[0] > 0][:EACH_WAY]
    lost = [case for case in changes if case[0] < 0][:EACH_WAY]
    chosen = sorted(lost + won, key=lambda case: (-abs(case[0]), case[1], case[2]))
    wanted: dict[str, set[str]] = {}
    for _, task, query in chosen:
        ids = {
            *collections[task].positives(query)[:RELEVANT],
            *_first(before, task, query),
            *_first(after, task, query),
        }
        wanted.setdefault(task, set()).update(ids)
    texts = {task: _texts(collections[task], ids) for task, ids in wanted.items()}
    return [
        {
            "task": task,
            "id": query,
            "query": collections[task].queries[query],
            "before": before["tasks"][task]["per_query"][query][METRIC],
            "after": after["tasks"][task]["per_query"][query][METRIC],
            "relevant": [
                _passage(p, query, collections[task], texts[task])
                for p in collections[task].positives(query)[:RELEVANT]
            ],
            "first_before": [
                _passage(p, query, collections[task], texts[task]) for p in _first(before, task, query)
            ],
            "first_after": [
                _passage(p, query, collections[task], texts[task]) for p in _first(after, task, query)
            ],
        }
        for _, task, query in chosen
    ]


def _changes(
    before: Mapping[str, Any], after: Mapping[str, Any], collections: Mapping[str, Collection]
) -> Iterator[tuple[float, str, str]]:
    for task in after["tasks"]:
        if task in before["tasks"] and task in collections:
            old, new = before["tasks"][task]["per_query"], after["tasks"][task]["per_query"]
            yield from (
                (new[query][METRIC] - old[query][METRIC], task, query) for query in new if query in old
            )


def _first(results: Mapping[str, Any], task: str, query: str) -> Sequence[str]:
    """The passage that came first."""
    return results["tasks"][task].get("top", {}).get(query, [])[:1]


def _texts(collection: Collection, wanted: set[str]) -> dict[str, str]:
    return {p.id: p.full_text[:LONGEST] for p in collection.corpus if p.id in wanted}


def _passage(passage_id: str, query: str, collection: Collection, texts: Mapping[str, str]) -> dict[str, Any]:
    """One passage with its grade for the query; None where nobody judged it."""
    grade = collection.judgements[query].get(passage_id)
    return {"id": passage_id, "text": texts[passage_id], "grade": grade}
