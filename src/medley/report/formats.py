"""The files of a run folder as the report reads them: what it shows is checked strictly, the rest is let be.

Each model is one file (or a part of one); reading.py turns a failed check into a sentence with file and key.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class ComparedTask(_Format):
    """Of one variant on one test collection what a comparison needs: each query's scores."""

    per_query: dict[str, dict[str, Number]] | None = None


class ComparedVariant(_Format):
    """One variant as it is compared."""

    tasks: dict[str, ComparedTask]


class Compared(_Format):
    """A results.json as it is compared: other tools write no more of it than this."""

    variants: dict[str, ComparedVariant]


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


class HeldOut(_Format):
    """A candidate's score on the dev queries that the search did not see."""

    score: Number
    scores: dict[str, Number] = {}


class Candidate(_Format):
    """Coefficients that were tried. `real`: the score was measured, not predicted by the surrogate."""

    coefficients: dict[str, Coefficient]
    score: Number
    scores: dict[str, Number] = {}
    real: bool = True
    predicted: Number | None = None
    confirm: HeldOut | None = None


class FrontPoint(_Format):
    """A candidate's mean scores on dev collections of the domain and on the general ones."""

    domain: Number
    general: Number


class Front(_Format):
    """The Pareto front: candidates by index, and every candidate's two scores."""

    candidates: list[int]
    chosen: int
    scores: list[FrontPoint]

    @model_validator(mode="after")
    def _points_exist(self) -> Front:
        if any(not 0 <= index < len(self.scores) for index in (*self.candidates, self.chosen)):
            raise ValueError(f"names a candidate beyond the {len(self.scores)} that have scores")
        return self


class Search(_Format):
    """stages/merge/search/search.json."""

    best: Candidate
    strategy: str = ""
    method: str = ""
    encodings: int | None = None
    candidates: list[Candidate] = []
    front: Front | None = None


class TriedInstruction(_Format):
    """One instruction and its score on dev. `finished`: on all choosing queries; `parent`: the place of the one that
    it was made from."""

    instruction: str
    score: Number
    queries: int | None = None
    finished: bool = True
    origin: str = ""
    parent: int | None = None


class RejectedInstruction(_Format):
    """A proposal that was not tried, or not kept, and why."""

    instruction: str
    reason: str


class PairedDifference(_Format):
    """A paired test."""

    difference: Number
    p_value: Number
    ci_low: Number
    ci_high: Number


class PromptProof(_Format):
    """What queries say that had no part in choosing: nDCG@10 of the best candidate and what it stands against."""

    verdict: str
    queries: int
    best: Number | None = None
    seed: Number | None = None
    no_instruction: Number | None = None
    random_mean: Number | None = None
    random_spread: Number | None = None
    random_low: Number | None = None
    random_high: Number | None = None
    random_count: int = 0
    versus_seed: PairedDifference | None = None


class Prompt(_Format):
    """stages/prompts/<expert>/prompt.json, and stages/merge/instruction/prompt.json."""

    instruction: str
    seed_instruction: str = ""
    method: str = ""
    dev: list[str] = []
    candidates: list[TriedInstruction] = []
    proof: PromptProof | None = None
    ended: str = ""
    complete: bool = True
    rejected: list[RejectedInstruction] = []
    drawn_from: list[str] = []


class LossPoint(_Format):
    """The loss after a step."""

    step: Number
    loss: Number


class DevPoint(_Format):
    """The score on dev after a step, with a part of the update made by then."""

    step: int
    scale: Number
    score: Number


class DevCurve(_Format):
    """What stopped a training, and what was kept."""

    points: list[DevPoint] = Field(min_length=1)
    shrunken: list[DevPoint] = []
    chosen: DevPoint
    stopped_early: bool = False


class Training(_Format):
    """stages/train/<expert>/training.json."""

    pairs: int
    steps: int
    seconds: Number = 0.0
    losses: list[LossPoint] = []
    dev: DevCurve | None = None
    source_counts: dict[str, int] = {}
