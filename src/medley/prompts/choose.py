"""Choose the instruction that scores best on dev among given candidates; passages are encoded once by the caller.

Input: candidate instructions and a function that scores one. Output: every candidate with its score, and the choice.
The seed instruction (what the sources say) is kept unless another one scores higher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

LIBRARY = Path(__file__).parent / "library.yaml"


class PromptSettings(BaseModel):
    """How instructions are chosen (the recipe's `prompts:`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["none", "library"] = Field(
        "library",
        description="none keeps the sources' instruction; library tries the bundled sentences on dev",
    )


@dataclass(frozen=True)
class ScoredInstruction:
    """One candidate and its mean nDCG@10 on dev."""

    instruction: str
    score: float


@dataclass(frozen=True)
class Choice:
    """The chosen instruction, the one it had to beat, and all candidates in the order they were tried."""

    instruction: str
    seed_instruction: str
    candidates: tuple[ScoredInstruction, ...]

    def as_json(self) -> dict[str, Any]:
        """As prompt.json holds it."""
        return {
            "instruction": self.instruction,
            "seed_instruction": self.seed_instruction,
            "candidates": [{"instruction": c.instruction, "score": c.score} for c in self.candidates],
        }


@cache
def library() -> tuple[str, ...]:
    """The bundled instructions, in file order."""
    import yaml

    return tuple(
        entry["text"] for entry in yaml.safe_load(LIBRARY.read_text(encoding="utf-8"))["instructions"]
    )


def choose_instruction(
    seed_instruction: str, candidates: Sequence[str], score: Callable[[str], float]
) -> Choice:
    """Score the seed and every candidate once; the best wins, the seed and then the earlier one on ties."""
    tried = [
        ScoredInstruction(instruction, score(instruction))
        for instruction in dict.fromkeys((seed_instruction, *candidates))
    ]
    best = max(tried, key=lambda candidate: candidate.score)  # max keeps the first of equals
    return Choice(best.instruction, seed_instruction, tuple(tried))
