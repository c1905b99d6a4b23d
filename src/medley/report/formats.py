"""The files of a run folder as the report reads them: what it shows is checked strictly, the rest is let be.

Each model is one file (or a part of one); reading.py turns a failed check into a sentence with file and key.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Number = Annotated[float, Field(allow_inf_nan=False)]
Coefficient = Number | list[Number]
"""One number, or one for each depth segment."""


class _Format(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class Artefact(_Format):
    """One entry of the manifest's `stages`."""

    key: str = ""
    seconds: Number = 0.0
    finished: str = ""
    summary: dict[str, Any] = {}


class Manifest(_Format):
    """manifest.json."""

    name: str
    seed: int | None = None
    medley_version: str = ""
    created: str = ""
    machine: str = ""
    versions: dict[str, str] = {}
    stages: dict[str, dict[str, Artefact]] = {}


class TaskScores(_Format):
    """Scores of one variant on one test collection; `per_query` is nDCG@10 and others by query id."""

    ndcg_at_10: Number
    split: str = ""
    recall_at_10: Number | None = None
    recall_at_100: Number | None = None
    mrr_at_10: Number | None = None
    map: Number | None = None
    judged_at_10: Number | None = None
    per_query: dict[str, dict[str, Number]] = {}


class VariantScores(_Format):
    """One row of the results: a model and its scores by task."""

    model: dict[str, Any] = {}
    tasks: dict[str, TaskScores]


class DemandOutcome(_Format):
    """Whether a demand of the recipe is met, in words."""

    met: bool
    sentence: str


class Results(_Format):
    """results.json."""

    variants: dict[str, VariantScores]
    groups: dict[str, list[str]] = {}
    queries: dict[str, dict[str, str]] = {}
    demands: list[DemandOutcome] = []


class CasePassage(_Format):
    """A passage of a case; its grade for the query, None where nobody judged it."""

    id: str
    text: str
    grade: int | None = None


class Case(_Format):
    """One entry of failures.json: a test query that merged wins or loses against the base."""

    task: str
    id: str
    query: str
    before: Number
    after: Number
    relevant: list[CasePassage] = []
    first_before: list[CasePassage] = []
    first_after: list[CasePassage] = []


class LeakExample(_Format):
    """A training text and the held-out text that it repeats."""

    training: str
    held_out: str


class LeakFinding(_Format):
    """One entry of leaks.json: a class of leaks into one collection."""

    kind: str
    against: str
    sentence: str
    rows: int
    examples: list[LeakExample] = []


class Candidate(_Format):
    """Coefficients that were tried. `real`: the score was measured, not predicted by the surrogate."""

    coefficients: dict[str, Coefficient]
    score: Number
    scores: dict[str, Number] = {}
    real: bool = True
    predicted: Number | None = None


class Search(_Format):
    """stages/merge/search/search.json."""

    best: Candidate
    strategy: str = ""
    method: str = ""
    encodings: int | None = None
    candidates: list[Candidate] = []


class TriedInstruction(_Format):
    """One instruction and its score on dev."""

    instruction: str
    score: Number


class Prompt(_Format):
    """stages/prompts/<expert>/prompt.json."""

    instruction: str
    seed_instruction: str = ""
    method: str = ""
    dev: list[str] = []
    candidates: list[TriedInstruction] = []


class LossPoint(_Format):
    """The loss after a step."""

    step: Number
    loss: Number


class Training(_Format):
    """stages/train/<expert>/training.json."""

    pairs: int
    steps: int
    seconds: Number = 0.0
    losses: list[LossPoint] = []
    source_counts: dict[str, int] = {}
