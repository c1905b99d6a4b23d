"""What a training will take, before it starts: parameters, steps, memory and time, from a few measured passes.

The first batches are made as training makes them, so tokens, padding and mini-batches are theirs. Memory and time are
measured on at most MEASURED_PAIRS pairs of them, forward and backward, and scaled by tokens; nothing is learnt, and
the retriever is afterwards what it was. Scoring on dev, where it stops a training early, comes on top.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from medley.encoder import Retriever
from medley.pairs import TrainingPair
from medley.train.adapter import add_adapter, remove_adapter
from medley.train.collate import Collator
from medley.train.contrastive import computing, gradient_cache, loader
from medley.train.gradient_cache import GradientCache
from medley.train.settings import TrainSettings

if TYPE_CHECKING:
    import torch

BATCHES = 3
MEASURED_PAIRS = 16


@dataclass(frozen=True)
class Preflight:
    """Sizes in bytes, times in seconds; a step's numbers are means over the first batches.

    `state_bytes`: weights, gradients and the optimiser's two moments. `mini_batch_bytes`: activations of the largest
    mini-batch (with gradient checkpointing what lies between its layers is not counted). `kept`: the share of a step's
    activations that memory allows to keep, not computed twice.
    """

    pairs: int
    batch_size: int
    steps: int
    parameters: int
    trained_parameters: int
    tokens_per_step: int
    padding: float
    mini_batches_per_step: int
    state_bytes: int
    mini_batch_bytes: int
    kept: float
    seconds_per_step: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def preflight(
    retriever: Retriever, pairs: Sequence[TrainingPair], settings: TrainSettings, *, seed: int
) -> Preflight:
    """Measure what `train` with the same arguments will take. Raises what `train` would raise of them."""
    import torch

    steps, _ = settings.steps_of(len(pairs))
    batches = loader(retriever, pairs, settings, steps=min(steps, BATCHES), seed=seed)
    assert isinstance(batches.collate_fn, Collator) and batches.batch_sampler is not None
    rows = list(batches.batch_sampler)
    model = retriever.model
    features = [_features(batches.collate_fn, batch, model.device) for batch in rows]
    small = [_features(batches.collate_fn, batch[:MEASURED_PAIRS], model.device) for batch in rows]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    if settings.lora is not None:
        add_adapter(model, settings.lora)
    try:
        model.train()
        with computing(retriever, settings), torch.random.fork_rng():
            cache = gradient_cache(retriever, settings)
            kept_seconds = _seconds_per_token(cache, model, small, keep=True)
            twice_seconds = _seconds_per_token(cache, model, small, keep=False)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        state = sum(p.numel() * p.element_size() for p in model.parameters())
        state += 3 * sum(p.numel() * p.element_size() for p in trained)
        parameters = sum(p.numel() for p in model.parameters())
        trained_parameters = sum(p.numel() for p in trained)
    finally:
        model.eval()
        if settings.lora is not None:
            remove_adapter(retriever)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    sizes = [cache.sizes(batch) for batch in features]
    padded = statistics.mean(map(sum, sizes))
    useful = statistics.mean(int(batch["lengths"].sum()) for batch in features)
    bytes_per_token = cache.bytes_per_token or 0.0
    kept = min(1.0, gradient_cache(retriever, settings).keep_bytes / max(1.0, padded * bytes_per_token))
    per_step = padded * (kept * kept_seconds + (1 - kept) * twice_seconds)
    return Preflight(
        pairs=len(pairs),
        batch_size=len(rows[0]),
        steps=steps,
        parameters=parameters,
        trained_parameters=trained_parameters,
        tokens_per_step=round(useful),
        padding=round(1 - useful / padded, 4),
        mini_batches_per_step=round(statistics.mean(map(len, sizes))),
        state_bytes=state,
        mini_batch_bytes=round(max(map(max, sizes)) * bytes_per_token),
        kept=round(kept, 4),
        seconds_per_step=round(per_step, 4),
        seconds=round(per_step * steps, 3),
    )


def _features(collator: Collator, rows: Sequence[int], device: torch.device) -> dict[str, torch.Tensor]:
    batch = collator([{"row": row} for row in rows])
    return {name.removeprefix("text_"): tensor.to(device) for name, tensor in batch.items()}


def _seconds_per_token(
    cache: GradientCache, model: Any, batches: Sequence[dict[str, torch.Tensor]], *, keep: bool
) -> float:
    """Median time of a forward and backward pass over the tokens with padding; the first batch also warms up."""
    import torch

    allowed, cache.keep_bytes = cache.keep_bytes, 2**62 if keep else 0
    device = next(model.parameters()).device
    found = []
    for batch in islice([batches[0], *batches], BATCHES + 1):
        before, start = cache.counts.padded, time.perf_counter()
        cache(model, batch).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append((time.perf_counter() - start) / (cache.counts.padded - before))
        model.zero_grad(set_to_none=True)
    cache.keep_bytes = allowed
    return statistics.median(found[1:])
