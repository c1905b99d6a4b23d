"""Moving experts toward the base first: ratio 1 is the base, ratio 0 the expert, and dev picks between."""

from __future__ import annotations

import numpy as np
import pytest

from medley.encoder import encode_queries
from medley.merge.model import merge_model
from medley.merge.opening import open_merge
from medley.merge.pool import PoolVectors, build_pool, score_vectors
from medley.merge.settings import parse_merge_file
from medley.merge.shrink import ShrunkScore, best_ratios, score_ratios
from test_expert import TEXTS
from test_merge_search import make_collection


@pytest.mark.slow
def test_ratios_are_scored_alone_and_the_best_is_taken(tmp_path, base_folder, checkpoints, adapter):
    content = {
        "base": base_folder, "experts": {"full": str(checkpoints[0]), "lora": str(adapter)},
        "method": "task_arithmetic", "weights": {"full": 0.5, "lora": 0.5}, "retriever": {"max_length": 32},
    }  # fmt: skip
    merge = open_merge(parse_merge_file(content, "x"))
    pool = build_pool(make_collection(passages=12, queries=4), max_passages=12)
    before = encode_queries(merge.base, TEXTS)
    scores = score_ratios(merge, [pool], (0.5, 1.0))
    assert np.array_equal(encode_queries(merge.base, TEXTS), before)
    assert [(s.expert, s.ratio) for s in scores] == [
        (n, r) for n in ("full", "lora") for r in (0.0, 0.5, 1.0)
    ]
    from medley.encoder import encode_passages

    base = score_vectors(
        [pool],
        [PoolVectors(encode_queries(merge.base, pool.queries), encode_passages(merge.base, pool.passages))],
    )
    at_one = {s.expert: s.score for s in scores if s.ratio == 1.0}
    assert abs(at_one["full"] - base.score) < 1e-9
    assert abs(at_one["lora"] - base.score) < 1e-9

    merge_model(parse_merge_file(content | {"shrink": best_ratios(scores)}, "x"), tmp_path / "merged")


def test_ties_go_to_the_smallest_ratio():
    scores = [ShrunkScore("a", 0.0, 0.5), ShrunkScore("a", 0.1, 0.5), ShrunkScore("a", 0.25, 0.4),
              ShrunkScore("b", 0.0, 0.1), ShrunkScore("b", 0.5, 0.2)]  # fmt: skip
    assert best_ratios(scores) == {"a": 0.0, "b": 0.5}
