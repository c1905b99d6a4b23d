"""How well the guard tells rewritten negatives that still answer from those that do not.

    MEDLEY_DATA=<folder> python benchmarks/guard_rewritten.py [--retriever bm25 | MODEL]

Labels come from how the rows are made; no language model is asked.
  xquad_en       each paragraph answers several questions. It is rewritten for one of them: for that question it is a
                 true negative; for another question, drawn at random, most such rewritings still answer (planted; not
                 all: some touch the other's answer too, so what is caught is a lower bound).
  mediqa2019_qa  the best-graded answer gets sentences of another judged answer to the same question: graded 2 or 3,
                 these answer by themselves (planted), graded 0 or 1 they do not (true).
Kept: share of the true negatives that stay. Caught: share of the planted ones that the guard drops.
"""

from __future__ import annotations

import argparse
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from medley.collections import Collection, load_collection
from medley.encoder import open_retriever
from medley.guard.decide import guard_negatives
from medley.guard.settings import GuardSettings
from medley.pairs import TrainingPair
from medley.synthesize.entities import build_lexicon, short_title, stems_of
from medley.synthesize.focus import find_focus
from medley.synthesize.perturb import PerturbationSettings, perturb_negatives
from medley.synthesize.rewrite import apply_changes, recorded
from medley.synthesize.transplant import make_donor, transplant_changes

LONGEST = 4_000
"""Characters of an answer of mediqa2019_qa that is rewritten; some are whole web pages."""
RULES = {
    "left and margin, the defaults": {},
    "left alone": {"margin": None},
    "margin alone, on sentences": {"left": None},
    "margin on every kind": {"left": None, "closeness": None, "scored": ("perturbed",)},
}
Labelled = list[tuple[TrainingPair, bool]]
"""Rows with one rewritten negative each, and whether that still answers."""


def other_questions(collection: Collection) -> Labelled:
    texts = {passage.id: passage.full_text for passage in collection.corpus}
    asked = [(query, collection.positives(name)[0]) for name, query in collection.queries.items()]
    pairs = [TrainingPair(query, texts[passage]) for query, passage in asked]
    made = perturb_negatives(pairs, collection.corpus, PerturbationSettings(), seed=1).pairs
    questions: dict[str, list[str]] = defaultdict(list)
    for query, passage in asked:
        questions[passage].append(query)
    rng, rows = random.Random(0), []
    for pair, (query, passage) in zip(made, asked, strict=True):
        others = [other for other in questions[passage] if other != query]
        if pair.negatives and others:
            rows += [(pair, False), (replace(pair, query=rng.choice(others)), True)]
    return rows


def other_answers(collection: Collection) -> Labelled:
    passages = {passage.id: passage for passage in collection.corpus}
    lexicon = build_lexicon(list(collection.corpus))
    rows = []
    for name, query in collection.queries.items():
        (best, grade), *others = sorted(
            collection.judgements[name].items(), key=lambda item: (-item[1], item[0])
        )
        positive = passages[best].full_text
        if grade < 2 or len(positive) > LONGEST:
            continue
        focus, title = (
            find_focus(query, positive, passages[best].title, lexicon),
            short_title(passages[best].title),
        )
        for donor, donor_grade in others:
            sentences = make_donor(passages[donor], title, whole=not focus.trusted)
            stems = frozenset(stems_of(query))
            changes, _ = transplant_changes(
                positive, stems, focus, [sentences], lexicon=lexicon, rng=random.Random(1)
            )
            if changes:
                record = {"kind": "sentence", "changes": recorded(changes)}
                negative = apply_changes(positive, changes)
                pair = TrainingPair(query, positive, (negative,), provenance={"perturbed": record})
                rows.append((pair, donor_grade >= 2))
    return rows


def report(name: str, rows: Labelled, retriever: str) -> None:
    model = None if retriever == "bm25" else open_retriever(retriever)
    print(f"\n{name}, {retriever.rpartition('/')[2]}\n")
    print("| rule | kind | true | kept | planted | caught |\n|---|---|---|---|---|---|")
    for rule, values in RULES.items():
        settings = GuardSettings.model_validate({"retriever": retriever, **values})
        guarded = guard_negatives([pair for pair, _ in rows], settings, seed=0, retriever=model)
        gone = [not pair.negatives for pair in guarded.pairs]
        kinds = [pair.provenance["perturbed"]["kind"] for pair, _ in rows]
        for kind in ("all", *(dict.fromkeys(kinds) if len(set(kinds)) > 1 else ())):
            chosen = [place for place, own in enumerate(kinds) if kind in ("all", own)]
            print(f"| {rule} | {kind} | {cells(rows, gone, chosen)} |", flush=True)


def cells(rows: Labelled, gone: Sequence[bool], chosen: Sequence[int]) -> str:
    parts = []
    for planted in (False, True):
        own = [gone[place] for place in chosen if rows[place][1] == planted]
        share = sum(own) / len(own)
        parts.append(f"{len(own)} | {share if planted else 1 - share:.3f}")
    return " | ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--retriever", default="bm25")
    retriever = parser.parse_args().retriever
    data = os.environ["MEDLEY_DATA"]
    report("xquad_en", other_questions(load_collection(f"{data}/collections/xquad_en:test")), retriever)
    mediqa = load_collection(f"{data}/collections/mediqa2019_qa:test", keep_empty=True)
    report("mediqa2019_qa", other_answers(mediqa), retriever)


if __name__ == "__main__":
    main()
