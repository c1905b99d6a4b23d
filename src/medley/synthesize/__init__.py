"""The synthesize stage: hard negatives and queries, by a language model or by rewriting the positive."""

from medley.synthesize.generated import Generated
from medley.synthesize.negatives import GenerationSettings, generate_negatives
from medley.synthesize.perturb import PerturbationSettings, perturb_negatives
from medley.synthesize.queries import generate_queries

__all__ = [
    "Generated",
    "GenerationSettings",
    "PerturbationSettings",
    "generate_negatives",
    "generate_queries",
    "perturb_negatives",
]
