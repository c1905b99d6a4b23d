"""The synthesize stage: hard negatives and queries, by a language model or by rewriting the positive.

negatives.py, kinds.py: hard negatives of several kinds · queries.py: queries for a corpus · tasks.py: invented tasks ·
consistency.py: which written pairs are kept · perturb.py and what it uses: negatives without a language model ·
asking.py, variants.py, replies.py, generated.py: what these share.
"""

from medley.synthesize.consistency import ConsistencySettings
from medley.synthesize.generated import Generated, Outcome, Tally, collected
from medley.synthesize.negatives import GenerationSettings, generate_negatives
from medley.synthesize.perturb import PerturbationSettings, perturb_negatives
from medley.synthesize.queries import QuerySettings, generate_queries, pairs_from_corpus
from medley.synthesize.tasks import TaskSettings, consistent_examples, generate_for_tasks, invent_tasks

__all__ = [
    "ConsistencySettings",
    "Generated",
    "GenerationSettings",
    "Outcome",
    "PerturbationSettings",
    "QuerySettings",
    "Tally",
    "TaskSettings",
    "collected",
    "consistent_examples",
    "generate_for_tasks",
    "generate_negatives",
    "generate_queries",
    "invent_tasks",
    "pairs_from_corpus",
    "perturb_negatives",
]
