"""A loss over a batch of any size in the memory of a few mini-batches, with nothing wasted on padding.

Gradient caching (GradCache, arXiv 2101.06983): embed every text without a graph, compute the loss and its gradient by
the embeddings, then embed again, mini-batch by mini-batch, and send the cached gradient back. Here:
- Mini-batches are cut from the texts of the whole batch, queries and passages alike, in order of length: the cut that
  costs the fewest tokens, padding included.
- What fits in the memory allowed keeps its graph and is not computed twice. Which mini-batches these are changes
  time, not one bit of the result: both ways the same tensors are added up in the same order.
- Out of memory, the step is made again with less in memory at a time; the batch stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from medley.batches import padded
from medley.errors import ModelError
from medley.progress import say
from medley.train.collate import as_contrast
from medley.train.loss import InfoNCE, loss_and_gradient

if TYPE_CHECKING:
    import torch

    from medley.train.loss import Contrast

OVERHEAD_TOKENS = {"cpu": 64, "cuda": 1024}
"""What one more forward pass costs, as a number of tokens: mini-batches are not cut smaller for less padding."""
Features = Mapping[str, "torch.Tensor"]


@dataclass
class Counts:
    """Tokens that were asked for, and tokens computed on with padding, each counted once for a step."""

    useful: int = 0
    padded: int = 0

    @property
    def padding(self) -> float:
        """The share of padding."""
        return 1 - self.useful / self.padded if self.padded else 0.0


class GradientCache:
    """Computes the loss of a batch; what it returns sends the gradients into the model when `backward` is called.

    `max_tokens`: padded tokens a forward pass may hold (a longer text goes alone). `keep_bytes`: activations that may
    be kept. Both shrink when memory runs out, unless all processes must compute in step (`in_step`, see sharded.py).
    """

    def __init__(
        self,
        loss: InfoNCE,
        *,
        pad_token_id: int,
        max_tokens: int,
        keep_bytes: int,
        bf16: bool = False,
        in_step: bool = False,
    ) -> None:
        self.max_tokens, self.keep_bytes, self._in_step = max_tokens, keep_bytes, in_step
        self.bytes_per_token: float | None = None
        self.counts = Counts()
        self._loss, self._pad, self._bf16 = loss, pad_token_id, bf16

    def __call__(self, model: Any, features: Features) -> torch.Tensor:
        """The loss of one batch (see collate.dealt); float32 scalar."""
        tokens = _Tokens.of(features)
        while True:
            try:
                step = self._forward(model, tokens, as_contrast(features))
                break
            except RuntimeError as problem:
                refused = _refused_memory(problem)
            self._shrink(refused, tokens)  # outside `except`: the exception holds the tensors of its frames
        self.counts.useful += sum(tokens.lengths)
        self.counts.padded += sum(tokens.size(*cut) for cut in step.cuts)
        loss = step.loss.detach().requires_grad_()
        loss.register_hook(lambda scale: self._backward(model, tokens, step, scale))
        return loss

    def _forward(self, model: Any, tokens: _Tokens, contrast: Contrast) -> _Step:
        import torch

        cuts = self._cuts(tokens)
        kept: dict[int, torch.Tensor] = {}
        random_states: list[Any] = []
        parts: list[torch.Tensor] = []
        room = float(self.keep_bytes)
        stochastic = has_dropout(model)
        for index, cut in enumerate(cuts):
            random_states.append(_random_state(tokens.ids.device) if stochastic else None)
            needed = tokens.size(*cut) * (self.bytes_per_token or 0.0)
            if self.bytes_per_token is None and room > 0:
                with SavedBytes(model) as saved:
                    vectors = self._embed(model, tokens, cut)
                needed = saved.total
                self.bytes_per_token = needed / tokens.size(*cut)
            else:
                with torch.set_grad_enabled(0 < needed <= room):
                    vectors = self._embed(model, tokens, cut)
            if vectors.requires_grad and needed <= room:
                kept[index] = vectors
                room -= needed
            parts.append(vectors.detach())
        embeddings_TH = _gathered(torch.cat(parts))
        loss, gradient_TH = loss_and_gradient(embeddings_TH, contrast, self._loss)
        return _Step(cuts, loss, _own_share(gradient_TH), kept, random_states)

    def _backward(self, model: Any, tokens: _Tokens, step: _Step, scale: torch.Tensor) -> None:
        """Send the cached gradient, times `scale`, through each mini-batch in order."""
        import torch

        before = [(p, None if p.grad is None else p.grad.clone()) for p in _trained(model)]
        cuts, random_states = step.cuts, step.random_states
        while True:
            try:
                with torch.enable_grad():
                    for index, cut in enumerate(cuts):
                        vectors = step.kept.pop(index, None)
                        if vectors is None:
                            with _replayed(random_states[index]):
                                vectors = self._embed(model, tokens, cut)
                        vectors.backward(step.gradient_TH[slice(*cut)] * scale)
                        del vectors
                break
            except RuntimeError as problem:
                refused = _refused_memory(problem)
            if any(state is not None for state in random_states):
                raise ModelError(
                    f"out of memory ({refused}) where dropout cannot be repeated; lower train.mini_batch_size."
                )
            step.kept.clear()
            self._shrink(refused, tokens)
            for parameter, gradient in before:
                parameter.grad = gradient
            cuts = self._cuts(tokens)
            random_states = [None] * len(cuts)
        _sum_over_processes(model)

    def _embed(self, model: Any, tokens: _Tokens, cut: tuple[int, int]) -> torch.Tensor:
        """The vectors of some texts, float32."""
        import torch

        begin, end = cut
        ids = tokens.ids[tokens.starts[begin] : tokens.starts[end]]
        inputs = padded(ids, tokens.lengths[begin:end], self._pad)
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            vectors: torch.Tensor = model(inputs)["sentence_embedding"]
        return vectors.float()

    def sizes(self, features: Features) -> list[int]:
        """Tokens of each mini-batch that a batch is cut into, padding included."""
        tokens = _Tokens.of(features)
        return [tokens.size(*cut) for cut in self._cuts(tokens)]

    def _cuts(self, tokens: _Tokens) -> list[tuple[int, int]]:
        overhead = OVERHEAD_TOKENS.get(tokens.ids.device.type, OVERHEAD_TOKENS["cuda"])
        return cheapest_cuts(tokens.widths, max_tokens=self.max_tokens, overhead=overhead)

    def _shrink(self, reason: str, tokens: _Tokens) -> None:
        """Allow less in memory at a time; raise ModelError where one text alone is too much, or nothing may change."""
        if self._in_step:
            raise ModelError(
                f"out of memory ({reason}) with the base divided among devices; lower train.mini_batch_size."
            )
        if self.keep_bytes:
            self.keep_bytes = 0
            say(f"out of memory ({reason}): activations are no longer kept; the batch stays as it is.")
        else:
            largest = max(tokens.widths[begin] * (end - begin) for begin, end in self._cuts(tokens))
            if largest <= tokens.widths[0]:
                raise ModelError(
                    f"out of memory ({reason}) with one text of {largest} tokens at a time; lower "
                    "retriever.max_length, or set train.gradient_checkpointing."
                )
            self.max_tokens = largest // 2
            say(
                f"out of memory ({reason}): mini-batches of {self.max_tokens} tokens; the batch stays as it is."
            )
        _free_memory()


@dataclass(frozen=True)
class _Tokens:
    """The texts of one process, longest first: their tokens one after another, where each starts, how long it is."""

    ids: torch.Tensor
    lengths: list[int]
    starts: list[int]
    widths: list[int]

    @classmethod
    def of(cls, features: Features) -> _Tokens:
        lengths = features["lengths"].tolist()
        return cls(features["input_ids"], lengths, [0, *accumulate(lengths)], features["widths"].tolist())

    def size(self, begin: int, end: int) -> int:
        """Tokens of a mini-batch, padding included."""
        return self.lengths[begin] * (end - begin)


@dataclass
class _Step:
    """What the backward pass of a batch needs from its forward pass."""

    cuts: list[tuple[int, int]]
    loss: torch.Tensor
    gradient_TH: torch.Tensor
    kept: dict[int, torch.Tensor]
    random_states: list[Any]


def cheapest_cuts(lengths: Sequence[int], *, max_tokens: int, overhead: int) -> list[tuple[int, int]]:
    """Cut texts, longest first, into mini-batches: (begin, end) of each, the cut of the fewest tokens in all.

    A mini-batch costs its number of texts times its longest, at most `max_tokens`, plus `overhead`. A text longer
    than `max_tokens` goes alone. Dynamic programming over the end of the last mini-batch.
    """
    import numpy as np

    count = len(lengths)
    width_N = np.asarray(lengths, dtype=np.int64)
    cost_N = np.zeros(count + 1, dtype=np.int64)
    start_N = np.zeros(count + 1, dtype=np.int64)
    first = 0
    for end in range(1, count + 1):
        while first < end - 1 and width_N[first] * (end - first) > max_tokens:
            first += 1
        begins = np.arange(first, end)
        costs = cost_N[begins] + width_N[begins] * (end - begins) + overhead
        best = int(costs.argmin())
        cost_N[end], start_N[end] = costs[best], begins[best]
    cuts: list[tuple[int, int]] = []
    end = count
    while end:
        cuts.append((int(start_N[end]), end))
        end = int(start_N[end])
    return cuts[::-1]


class SavedBytes:
    """Counts what autograd keeps of the operations inside the `with`: each storage once, parameters aside."""

    def __init__(self, model: Any) -> None:
        self.total = 0
        self._seen = {
            tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())
        }
        self._hooks: Any = None

    def __enter__(self) -> SavedBytes:
        """Start counting."""
        import torch

        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *problem: object) -> None:
        """Stop."""
        self._hooks.__exit__(*problem)

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def has_dropout(model: Any) -> bool:
    """Whether two forward passes of a training model differ by chance."""
    import torch

    modules = list(model.modules())
    return any(
        isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0 for module in modules
    ) or any(
        float(getattr(module, "attention_dropout", 0.0) or 0.0) > 0
        for module in modules
        if isinstance(getattr(module, "attention_dropout", None), (int, float))
    )


def _random_state(device: torch.device) -> Any:
    import torch
    from sentence_transformers.base.losses.gradcache import RandContext

    return RandContext(torch.empty(0, device=device))


def _replayed(state: Any) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if state is None else state


def _refused_memory(problem: RuntimeError) -> str:
    """What the device said when it refused memory, in short; any other error is raised again."""
    from accelerate.utils.memory import should_reduce_batch_size

    if not should_reduce_batch_size(problem):
        raise problem
    return str(problem).split(". ")[0].split("\n")[0][:120]


def _free_memory() -> None:
    from accelerate.utils.memory import release_memory

    release_memory()


def _processes() -> int:
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gathered(embeddings_TH: torch.Tensor) -> torch.Tensor:
    """The embeddings of all processes, rank by rank; every process has as many."""
    import torch
    import torch.distributed as dist

    if _processes() == 1:
        return embeddings_TH
    parts = [torch.empty_like(embeddings_TH) for _ in range(_processes())]
    dist.all_gather(parts, embeddings_TH.contiguous())
    return torch.cat(parts)


def _own_share(gradient_TH: torch.Tensor) -> torch.Tensor:
    import torch.distributed as dist

    if _processes() == 1:
        return gradient_TH
    return gradient_TH.chunk(_processes())[dist.get_rank()]


def _sum_over_processes(model: Any) -> None:
    """Every process went back through its own texts: the gradient of the batch is the sum."""
    import torch.distributed as dist

    if _processes() > 1:
        for parameter in _trained(model):
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)


def _trained(model: Any) -> Iterator[Any]:
    return (parameter for parameter in model.parameters() if parameter.requires_grad)
