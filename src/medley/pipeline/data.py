"""Building the data artefacts: pairs of a source, their mined negatives, their generated negatives.

Each artefact's pairs.jsonl has one row for each pair of the source, in the same order; the mine and synthesize
artefacts hold only the negatives that they added, so that an expert can choose among kinds.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medley.collections import Passage
from medley.errors import LeakError, MedleyError
from medley.files import write_json
from medley.leaks.explain import Finding, explain_leaks
from medley.leaks.find import HeldOutCollection, Leak, Passages, hold_out, iter_leaks
from medley.llm import Ledger
from medley.origins import RECORDS, without_negatives
from medley.pairs import TrainingPair, numbered, pairs_from_collection, read_pairs, write_pairs
from medley.pipeline.guarding import guard_rows, read_promoted, with_guard_counts, write_promoted
from medley.pipeline.inputs import Inputs, expanded
from medley.pipeline.writing import write_negatives, write_queries
from medley.positives import PositiveKeys
from medley.recipe import Recipe, Source

PAIRS = "pairs.jsonl"
COUNTS = "counts.json"
LEAKS = "leaks.json"
"""In the artefacts of sources, under `leaks: drop`: queries left out because dev or test collections have them."""
WHOLE_CORPUS = 200_000
"""Passages up to which a run holds positives against a whole corpus; `medley leaks` always does."""
LLM_CACHE = "llm-cache.jsonl"
"""In the run folder: every reply that was paid for."""
VECTORS = "vectors"
"""In the run folder: the passages' vectors, where a model mines, so that encoding goes on where it was killed."""


def build_source(
    recipe: Recipe, inputs: Inputs, name: str, held_out: Sequence[str], out: Path, _: Mapping[str, Path]
) -> dict[str, Any]:
    """Read a source's pairs, or have queries written for its corpus.

    Under `leaks: drop` those are left out whose query stands in a dev or test collection.

    Raises LeakError when fewer than two rows are left.
    """
    source = recipe.sources[name]
    counts: dict[str, Any] = {}
    if source.writes_queries:
        written = write_queries(recipe, inputs, name, out.parents[2] / LLM_CACHE)
        pairs, counts = list(written.pairs), {"counts": dict(written.counts), **_paid(llm=written.ledger)}
        write_json(out / COUNTS, dict(written.counts))
    else:
        read = _read(source, inputs, name)
        pairs = list(PositiveKeys(read).cleaned(read))
    if source.limit is not None and source.limit < len(pairs):
        kept = sorted(random.Random(recipe.seed).sample(range(len(pairs)), source.limit))
        pairs = [pairs[index] for index in kept]
    leaks = _leaks(pairs, inputs, held_out, passages="none") if recipe.leaks == "drop" else []
    leaking = _rows_by_collection(leaks)
    dropped = {leak.row for leak in leaks}
    kept_pairs = [pair for row, pair in numbered(pairs) if row not in dropped]
    if len(kept_pairs) < 2:
        raise LeakError(f"sources.{name}: fewer than two rows are left after leaking ones were dropped.")
    write_pairs(out / PAIRS, kept_pairs)
    write_json(out / LEAKS, [f.as_json() for f in _explained(leaks, inputs)])
    return {"pairs": len(kept_pairs), "leaks": {spec: len(rows) for spec, rows in leaking.items()}, **counts}


def _leaks(
    pairs: Sequence[TrainingPair], inputs: Inputs, held_out: Sequence[str], *, passages: Passages
) -> list[Leak]:
    """Leaks of the pairs into dev and test collections, each under its SPEC:SPLIT."""
    return list(iter_leaks(pairs, [_held_out(inputs, spec, passages) for spec in held_out]))


def _held_out(inputs: Inputs, spec: str, passages: Passages) -> HeldOutCollection:
    return replace(hold_out(inputs.collection(spec), passages=passages), name=spec)


def _rows_by_collection(leaks: Sequence[Leak]) -> dict[str, set[int]]:
    rows: dict[str, set[int]] = {}
    for leak in leaks:
        rows.setdefault(leak.against, set()).add(leak.row)
    return rows


def _explained(leaks: Sequence[Leak], inputs: Inputs) -> list[Finding]:
    """What the leaks mean, by collection."""
    return [
        replace(finding, against=f"{inputs.collection(spec).name}:{inputs.collection(spec).split}")
        for spec in _rows_by_collection(leaks)
        for finding in explain_leaks(
            [leak for leak in leaks if leak.against == spec], inputs.collection(spec)
        )
    ]


def check_leaks(
    inputs: Inputs, names: Sequence[str], held_out: Sequence[str], out: Path, needs: Mapping[str, Path]
) -> dict[str, Any]:
    """Refuse sources whose queries recur in a dev or test collection; write down what else recurs and what it means.

    One file of findings for each source. Corpora of up to WHOLE_CORPUS passages are looked at as a whole, larger ones
    where they are judged; each is arranged for the search once, for all sources, and one at a time.
    Raises LeakError with the first row and the remedy.
    """
    pairs = {name: read_pairs(needs[f"sources/{name}"] / PAIRS) for name in names}
    queries_only = [_held_out(inputs, spec, "none") for spec in held_out]
    for name in names:
        for spec, rows in _rows_by_collection(list(iter_leaks(pairs[name], queries_only))).items():
            first = min(rows)
            raise LeakError(
                f"sources.{name}: {len(rows)} of {len(pairs[name])} training queries also stand in {spec}, the first "
                f"being row {first} ({pairs[name][first].query[:80]!r}); use other training data, or set "
                "`leaks: drop` to leave such rows out."
            )
    leaks: dict[str, list[Leak]] = {name: [] for name in names}
    for spec in held_out:
        whole = len(inputs.collection(spec).corpus) <= WHOLE_CORPUS
        index = _held_out(inputs, spec, "all" if whole else "judged")
        for name in names:
            leaks[name] += iter_leaks(pairs[name], [index])
    found = {}
    for name in names:
        findings = _explained(leaks[name], inputs)
        write_json(out / f"{name}.json", [finding.as_json() for finding in findings])
        found[name] = {f"{finding.against} {finding.kind}": finding.rows for finding in findings}
    return {"pairs": {name: len(pairs[name]) for name in names}, "collections": len(held_out), "found": found,
            "dev_queries_left_out": {spec: count for spec, count in inputs.left_out.items() if count}}  # fmt: skip


def _read(source: Source, inputs: Inputs, name: str) -> list[TrainingPair]:
    if source.collection is not None:
        collection = inputs.collection(f"{source.collection}:{source.split}")
        return pairs_from_collection(collection, instruction=source.instruction, source=name)
    pairs = read_pairs(expanded(source.pairs or ""))
    return [replace(pair, source=name, instruction=pair.instruction or source.instruction) for pair in pairs]


def build_mined(
    recipe: Recipe, inputs: Inputs, name: str, out: Path, needs: Mapping[str, Path]
) -> dict[str, Any]:
    """Mine hard negatives for a source's pairs, from its corpus or collection's or, without one, its own positives."""
    from medley.any_model import open_model
    from medley.mine import mine_negatives

    if recipe.negatives.mined is None:
        raise MedleyError("nothing to mine: the recipe's negatives.mined is null")
    judged = read_pairs(needs[f"sources/{name}"] / PAIRS)
    pairs = [without_negatives(pair, set(range(len(pair.negatives)))) for pair in judged]
    settings = recipe.negatives.mined.model_copy(update={"margin": recipe.negatives.guard.margin})
    retriever = None if settings.retriever == "bm25" else open_model(settings.retriever)
    mined = mine_negatives(
        pairs,
        _passages(recipe, inputs, name),
        settings,
        seed=recipe.seed,
        retriever=retriever,
        relevant=_relevant(recipe, inputs, name),
        store=out.parents[2] / VECTORS,
    )
    guarded = guard_rows(recipe, inputs, name, mined.pairs, judged, out.parents[2] / LLM_CACHE)
    write_pairs(out / PAIRS, guarded.pairs)
    write_promoted(out, guarded.promoted)
    counts = with_guard_counts(mined.counts, guarded, "negatives")
    write_json(out / COUNTS, counts)
    return {"pairs": len(guarded.pairs), "counts": counts, **_paid(judge=guarded.ledger)}


def _passages(recipe: Recipe, inputs: Inputs, name: str) -> Sequence[Passage] | None:
    source = recipe.sources[name]
    if source.corpus is not None:
        return inputs.corpus(source.corpus)
    return inputs.collection(f"{source.collection}:{source.split}").corpus if source.collection else None


def _relevant(recipe: Recipe, inputs: Inputs, name: str) -> dict[str, set[str]] | None:
    """Every passage judged relevant to a query, also where the source's limit left that pair out."""
    source = recipe.sources[name]
    if source.collection is None:
        return None
    collection = inputs.collection(f"{source.collection}:{source.split}")
    relevant: dict[str, set[str]] = {}
    for query_id, query in collection.queries.items():
        relevant.setdefault(query, set()).update(collection.positives(query_id))
    return relevant


def build_generated(
    recipe: Recipe, inputs: Inputs, name: str, out: Path, needs: Mapping[str, Path]
) -> dict[str, Any]:
    """Generate hard negatives: by the recipe's llm, or by perturbing positives."""
    seen = _with_all_known(needs, name)
    generated = write_negatives(recipe, seen, _passages(recipe, inputs, name), out.parents[2] / LLM_CACHE)
    new = [_only_new(before, after) for before, after in zip(seen, generated.pairs, strict=True)]
    judged = [*read_pairs(needs[f"sources/{name}"] / PAIRS), *read_promoted(needs.get(f"mine/{name}"))]
    guarded = guard_rows(recipe, inputs, name, new, judged, out.parents[2] / LLM_CACHE)
    write_pairs(out / PAIRS, guarded.pairs)
    write_promoted(out, guarded.promoted)
    counts = with_guard_counts(generated.counts, guarded, "made")
    write_json(out / COUNTS, counts)
    return {
        "pairs": len(guarded.pairs),
        "counts": counts,
        **_paid(llm=generated.ledger, judge=guarded.ledger),
    }


def _paid(*, llm: Ledger | None = None, judge: Ledger | None = None) -> dict[str, Any]:
    """What the language model was asked, as writer and as judge, and what that cost, for the manifest."""
    return {name: ledger.as_json() for name, ledger in (("llm", llm), ("judge", judge)) if ledger}


def _with_all_known(needs: Mapping[str, Path], name: str) -> list[TrainingPair]:
    """A source's pairs with judged negatives first, then mined ones: judged siblings are the nearest in topic."""
    judged = read_pairs(needs[f"sources/{name}"] / PAIRS)
    mined = _optional(needs.get(f"mine/{name}"), judged)
    return [
        pair.with_negatives(extra.negatives, extra.provenance)
        for pair, extra in zip(judged, mined, strict=True)
    ]


def _only_new(before: TrainingPair, after: TrainingPair) -> TrainingPair:
    """The row with only the negatives that were added to it, which stand last, and only their records."""
    provenance = {
        key: value
        for key, value in after.provenance.items()
        if key not in (*RECORDS, "guard") or before.provenance.get(key) != value
    }
    return replace(after, negatives=after.negatives[len(before.negatives) :], provenance=provenance)


def assemble_pairs(
    sources: Sequence[str], kinds: Sequence[str], needs: Mapping[str, Path]
) -> list[TrainingPair]:
    """An expert's training pairs, each with the wanted kinds of negatives in turn: one of each kind, then the next."""
    pairs = []
    for source in sources:
        judged = read_pairs(needs[f"sources/{source}"] / PAIRS)
        columns = {
            "judged": judged,
            "mined": _optional(needs.get(f"mine/{source}"), judged),
            "generated": _optional(needs.get(f"synthesize/{source}"), judged),
        }
        for row, pair in enumerate(judged):
            lists = [columns[kind][row].negatives for kind in kinds]
            negatives = [
                texts[position]
                for position in range(max(map(len, lists), default=0))
                for texts in lists
                if position < len(texts)
            ]
            pairs.append(replace(pair, negatives=tuple(dict.fromkeys(negatives))))
        for kind, stage in (("mined", "mine"), ("generated", "synthesize")):
            pairs += read_promoted(needs.get(f"{stage}/{source}")) if kind in kinds else []
    return pairs


def _optional(folder: Path | None, judged: Sequence[TrainingPair]) -> Sequence[TrainingPair]:
    """Rows with added negatives, or the same rows with none where the recipe made none."""
    if folder is None:
        return [replace(pair, negatives=()) for pair in judged]
    return read_pairs(folder / PAIRS)
