"""The model card: README.md of the merged model, written from the run's manifest, recipe, search and results.

Says what went in (data with licences, base, instructions), how it was put together (coefficients), what came out
(scores with intervals, differences with their tests), what it is for, and what is not known of it. Nothing is written
that the run folder does not hold; what nobody said is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medley.markdown import code, literal
from medley.report import findings
from medley.report.formats import Coefficient, Results
from medley.report.numbers import score, signed
from medley.report.numbers import variant as written
from medley.report.reading import ALL, BM25, MERGED, Run
from medley.yaml_file import dump_yaml

UNKNOWN = "not stated"


def model_card(run: Run) -> str:
    """The card as Markdown with the front matter that model hubs read."""
    sections = (_head(run), _use(run), _data(run), _making(run), _results(run), _limits(run), _again(run))
    return "\n".join(line for section in sections for line in section) + "\n"


def _head(run: Run) -> Iterator[str]:
    front: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "merge", "medley"],
    }
    if run.recipe.get("licence"):
        front["license"] = " ".join(str(run.recipe["licence"]).split())
    base = str(run.recipe.get("base", UNKNOWN))
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        front["base_model"] = base
    yield from ("---", dump_yaml(front).rstrip(), "---", "")
    yield from (f"# {literal(run.manifest.name)}", "")
    experts = len(_mapping(run.recipe, "experts"))
    kind = "expert" if experts == 1 else "experts"
    yield f"A dense retriever: {experts} {kind} trained on {code(Path(base).name)} and merged by Medley."
    yield ""


def _use(run: Run) -> Iterator[str]:
    groups = list(run.results.groups) if run.results else []
    yield from ("## Intended use", "")
    yield (
        "Ranking passages for short queries of the kind it was trained and tested on"
        + (f" ({literal(', '.join(groups))})" if groups else "")
        + ", as the first stage of search or of retrieval-augmented generation. Other languages, other kinds of texts "
        "and tasks such as clustering were not tested."
    )
    yield from (
        "", "```python", "from sentence_transformers import SentenceTransformer", "",
        'model = SentenceTransformer("path/to/this/folder")',
        'queries = model.encode_query(["..."])  # the instruction is in the saved prompt',
        'passages = model.encode_document(["..."])', "```", "",
    )  # fmt: skip


def _data(run: Run) -> Iterator[str]:
    yield from (
        "## Training data",
        "",
        "| source | pairs | licence | mined negatives | generated negatives |",
    )
    yield "|---|---|---|---|---|"
    described = _mapping(run.recipe, "sources")
    for source in run.sources:
        licence = _licence(_mapping(described, source.name))
        made = [str(outcome.made) if outcome else "–" for outcome in (source.mined, source.generated)]
        yield f"| {literal(source.name)} | {source.pairs or '–'} | {literal(licence)} | {' | '.join(made)} |"
    policy = run.recipe.get("leaks", "refuse")
    said = {
        "allow": "Training rows were **not** held against dev and test collections.",
        "drop": "Rows whose query recurs in a dev or test collection were dropped.",
    }
    yield from ("", said.get(str(policy), "No training query recurs in a dev or test collection."), "")


def _licence(source: Mapping[str, Any]) -> str:
    """What the recipe says, or the collection's own INFO.json."""
    from medley.files import read_json

    if source.get("licence"):
        return str(source["licence"])
    path = Path(str(source.get("collection") or source.get("corpus") or "")) / "INFO.json"
    if path.parent != Path() and path.is_file():
        info = read_json(path)
        if isinstance(info, Mapping) and isinstance(info.get("licence"), str):
            return info["licence"]
    return UNKNOWN


def _making(run: Run) -> Iterator[str]:
    yield from ("## How it was made", "")
    base = str(run.recipe.get("base", UNKNOWN))
    yield f"- Base: {code(Path(base).name)}; seed {run.manifest.seed}"
    prompt = run.prompts.get(ALL)
    if prompt is not None:
        yield f"- Instruction of queries: “{literal(prompt.instruction)}” ({literal(prompt.method or 'given')})"
    if run.search is not None:
        weights = "; ".join(
            f"{literal(name)} {_number(value)}" for name, value in run.search.best.coefficients.items()
        )
        yield f"- Merged ({literal(run.search.method or 'linear')}), coefficients chosen on dev: {weights}"
        if run.search.best.scores:
            dev = ", ".join(
                f"{literal(task)} {score(value)}" for task, value in run.search.best.scores.items()
            )
            yield f"- Dev nDCG@10: {dev}"
    yield ""


def _results(run: Run) -> Iterator[str]:
    yield from ("## Results", "")
    results = run.results
    if results is None or MERGED not in results.variants:
        yield from ("Not evaluated.", "")
        return
    tasks = [task for _, names in findings.tasks_of(results) for task in names]
    variants = findings.variants_of(results)
    yield "nDCG@10 on test collections; nothing was chosen on them. ± is half of a 95 % interval over queries."
    yield from (
        "",
        f"| | {' | '.join(literal(task) for task in tasks)} | mean |",
        "|---|" + "---|" * (len(tasks) + 1),
    )
    for name in variants:
        cells = [_scoreliteral(results, name, task) for task in tasks]
        yield f"| {literal(written(name))} | {' | '.join(cells)} | {score(findings.mean(results, name, tasks))} |"
    tested = findings.tested(
        results, [v for v in variants if v != MERGED], tasks, seed=run.manifest.seed or 0
    )
    if tested:
        yield from (
            "",
            f"Merged minus the others, mean over tasks; p corrected (Holm) over {len(tested)} comparisons:",
            "",
        )
    for found in tested:
        if not found.task:
            word = {"better": "better", "worse": "worse", "open": "no difference shown"}[found.word]
            interval = f"{signed(found.low)} to {signed(found.high)}"
            said = f"{signed(found.value)} (95 % interval {interval}, p {found.p_holm:.4f})"
            yield f"- {literal(written(found.b))}: {said}: {word}"
    yield from (f"- Demand: {literal(demand.sentence)}." for demand in results.demands)
    yield ""


def _scoreliteral(results: Results, variant: str, task: str) -> str:
    half = findings.half_width(results, variant, task)
    return score(findings.score(results, variant, task)) + (f" ± {score(half)}" if half is not None else "")


def _limits(run: Run) -> Iterator[str]:
    yield from ("## Limits", "")
    results = run.results
    if results is not None and MERGED in results.variants:
        tasks = [task for _, names in findings.tasks_of(results) for task in names]
        own = results.variants[MERGED].tasks
        counts = {task: len(own[task].per_query) for task in tasks if task in own}
        if counts:
            small = min(counts, key=lambda task: counts[task])
            yield (
                f"- Tested on {sum(counts.values())} queries; the smallest test, {literal(small)}, "
                f"has {counts[small]}."
            )
        judged = findings.score(results, MERGED, tasks[0], "judged_at_10")
        if judged is not None and judged < 0.5:
            yield f"- On {literal(tasks[0])} only {score(judged)} of the first ten passages were judged by anyone."
        if BM25 in results.variants:
            mean, lexical = (findings.mean(results, name, tasks) for name in (MERGED, BM25))
            if mean is not None and lexical is not None and lexical >= mean:
                yield f"- BM25 scores {score(lexical)} on these tests, not less than this model."
    for name, findings_of in run.leaks.items():
        yield from (
            f"- {literal(name)}: {literal(finding.sentence)}"
            for finding in findings_of
            if finding.kind != "query"
        )
    yield "- One training seed. What another seed gives was not measured; see `medley compare` for several."
    yield from ("- It ranks texts; it does not check whether what they say is true.", "")


def _again(run: Run) -> Iterator[str]:
    versions = ", ".join(f"{package} {version}" for package, version in run.manifest.versions.items())
    yield from (
        "## Make it again",
        "",
        "`medley run recipe.yaml` with the run's own recipe, seed and versions:",
        "",
    )
    yield from (versions or UNKNOWN, "")
    merge = run.manifest.stages.get("merge", {})
    yield from (f"- `merge/{name}`: `{artefact.key}`" for name, artefact in merge.items())


def _number(value: Coefficient) -> str:
    return " / ".join(f"{part:.3g}" for part in value) if isinstance(value, list) else f"{value:.3g}"


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}
