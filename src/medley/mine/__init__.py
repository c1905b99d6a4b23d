"""Mining: hard negatives for training pairs, taken from a corpus by BM25 or by a retriever.

In: pairs and the passages to look in (without: all positives of the pairs). Out: the same pairs in the same order,
each with up to `per_query` negatives more, and counts of what was dropped and why.
A candidate is kept only if its score is below `margin` times the positive's (NV-Retriever, arXiv 2407.15831):
what the retriever finds about as relevant as the positive is likely relevant. For BM25 the positive is scored in
the same index.

settings.py · pool.py: what is searched · find.py: the ranking of each query, and what its positives score ·
select.py: the rules that a negative passes · negatives.py: the stage itself.
"""

from medley.mine.negatives import Mined, MinedStream, mine_negatives
from medley.mine.settings import MiningSettings

__all__ = ["Mined", "MinedStream", "MiningSettings", "mine_negatives"]
