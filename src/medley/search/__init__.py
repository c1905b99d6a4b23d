"""Search: exact top-k over dense vectors, BM25, and passage vectors kept on disk in shards.

In: a corpus or collection and, for dense search, a retriever (encoder.py makes the vectors). Out: rankings.
Everything here is exact and deterministic: similarities in float32, equal scores in ascending order of passage id
(Unicode code points), also at the cut-off and across blocks. Memory is bounded by blocks: neither the texts nor the
vectors of a corpus are ever in memory as a whole.

order.py: scores and ids as one sortable number · dense.py: top-k by vectors · screen.py: the same with most passages
ruled out in bfloat16 · blocks.py: what both go through · compressed.py: top-k by small vectors · bm25.py: the lexical
index · fusion.py: rankings joined · shards.py, store.py: vectors on disk, by corpus and by text · embedder.py: what
makes vectors · rank.py: a collection's rankings.
"""

from medley.search.blocks import Similarity, Vectors, comparable
from medley.search.bm25 import Bm25Index
from medley.search.dense import Nearest, exact_top_k, nearest, similarity_of
from medley.search.embedder import Embedder, embedder_of
from medley.search.fusion import fuse
from medley.search.order import PassageOrder, Ranking, Rankings
from medley.search.rank import rank_by_vectors, rank_with_bm25, rank_with_embedder, rank_with_retriever
from medley.search.shards import Shards, corpus_ids, encode_corpus, passages_key

__all__ = [
    "Bm25Index",
    "Embedder",
    "Nearest",
    "PassageOrder",
    "Ranking",
    "Rankings",
    "Shards",
    "Similarity",
    "Vectors",
    "comparable",
    "corpus_ids",
    "embedder_of",
    "encode_corpus",
    "exact_top_k",
    "fuse",
    "nearest",
    "passages_key",
    "rank_by_vectors",
    "rank_with_bm25",
    "rank_with_embedder",
    "rank_with_retriever",
    "similarity_of",
]
