"""A causal language model in this process as a chat model: transformers, or vLLM where it is installed.

Requests that are asked at the same time share a batch (complete_stream has `concurrency` of them under way). With
a chat template the conversation goes through it, without one the messages are joined by blank lines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from medley.errors import ModelError
from medley.llm.ledger import Books, Ledger
from medley.llm.messages import Ask, Message, Reply, Request, Sampling, as_json, reply_from
from medley.llm.settings import LlmSettings
from medley.loading import check_vocabulary, opening
from medley.model_name import model_identity, resolve_base
from medley.progress import LINE_EVERY_S, say

if TYPE_CHECKING:
    import torch

GATHER_S = 0.01
"""A batch that is not full waits so long for further requests."""


THINKING_TOKENS = frozenset(
    (
        "<|channel|>",
        "<|message|>",
        "<|start|>",
        "<|end|>",
        "<|return|>",
        "<think>",
        "</think>",
        "[THINK]",
        "[/THINK]",
    )
)
"""Special tokens round thinking: of the harmony format (gpt-oss), and tags that some tokenizers hold as special."""

Complete = Callable[[Sequence[Request]], list[Reply]]


class LocalModel:
    """A model behind `generate`, which completes a batch in a thread. One batch runs at a time."""

    def __init__(self, name: str, generate: Complete, batch_size: int) -> None:
        self.name = name
        self._generate = generate
        self._batch_size = batch_size
        self._books = Books(None)

    @property
    def ledger(self) -> Ledger:
        """Calls and tokens; they cost no money."""
        return self._books.ledger

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Ask]:
        """Complete requests together with those that are asked at the same time."""
        waiting: list[tuple[Request, asyncio.Future[Reply]]] = []
        running = asyncio.Lock()

        async def ask(request: Request) -> Reply:
            answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
            waiting.append((request, answer))
            async with running:  # whoever holds it runs the batch for the others
                while not answer.done():
                    if len(waiting) < self._batch_size:
                        await asyncio.sleep(GATHER_S)
                    batch = waiting[: self._batch_size]
                    del waiting[: self._batch_size]
                    replies = await asyncio.to_thread(self._generate, [request for request, _ in batch])
                    for (_, place), reply in zip(batch, replies, strict=True):
                        self._books.paid(reply)
                        place.set_result(reply)
            return answer.result()

        yield ask


def open_local(settings: LlmSettings) -> LocalModel:
    """Load the model that `settings.local` names. Raises ModelError where it or its engine is not there."""
    local = settings.local or ""
    name = f"{local}@{model_identity(local)}"
    open_engine = _open_vllm if settings.engine == "vllm" else _open_transformers
    return LocalModel(name, open_engine(local), settings.concurrency)


def _open_transformers(local: str) -> Complete:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path, device = resolve_base(local), "cuda" if torch.cuda.is_available() else "cpu"
    say(f"{local}: loading the language model, to run on {device}")
    with opening(f"llm.local: {local}", "a causal language model"):
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype="auto" if device == "cuda" else torch.float32, trust_remote_code=False
        )
    check_vocabulary(model, tokenizer, f"llm.local: {local}")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = model.to(device).eval()
    return lambda requests: generate(model, tokenizer, requests)


def generate(model: Any, tokenizer: Any, requests: Sequence[Request]) -> list[Reply]:
    """Complete a batch with a transformers model. A row depends on its own request and seed, not on its
    neighbours, but for rounding.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    prompts = [prompt_of(tokenizer, request.messages) for request in requests]
    templated = tokenizer.chat_template is not None
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=not templated)
    batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    end = model.generation_config.eos_token_id or tokenizer.eos_token_id
    ends = set(end if isinstance(end, list) else [end]) - {None}
    config = GenerationConfig(
        do_sample=False,  # the noise does the sampling
        max_new_tokens=max(request.sampling.max_tokens for request in requests),
        eos_token_id=sorted(ends) or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    noise = _SeededNoise([request.sampling for request in requests])
    pace = _Pace(len(requests), config.max_new_tokens)
    with torch.inference_mode():
        rows = model.generate(
            **batch, generation_config=config, logits_processor=LogitsProcessorList([noise, pace])
        )
    length = batch["input_ids"].shape[1]
    asked = batch["attention_mask"].sum(dim=1).tolist()
    return [
        _reply(tokenizer, row, ends, request.sampling.max_tokens, int(tokens))
        for row, request, tokens in zip(rows[:, length:].tolist(), requests, asked, strict=True)
    ]


def prompt_of(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The conversation as one text, ready for the assistant's words."""
    if tokenizer.chat_template is None:
        return "\n\n".join(message.content for message in messages) + "\n\n"
    text = tokenizer.apply_chat_template(as_json(messages), tokenize=False, add_generation_prompt=True)
    return str(text)


def _reply(tokenizer: Any, row: list[int], ends: set[int], most: int, asked: int) -> Reply:
    stop = next((place for place, token in enumerate(row[:most]) if token in ends), None)
    written = row[:most] if stop is None else row[:stop]
    text = decoded(tokenizer, written)
    return reply_from(text, "length" if stop is None else "stop", (asked, len(written) + (stop is not None)))


def decoded(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """The text of tokens without special ones, but for those that say where thinking begins and ends."""
    special = {
        number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    if not any(special.get(number) in THINKING_TOKENS for number in token_ids):
        return str(tokenizer.decode(token_ids, skip_special_tokens=True))
    kept = [number for number in token_ids if number not in special or special[number] in THINKING_TOKENS]
    return str(tokenizer.decode(kept, skip_special_tokens=False))


class _SeededNoise:
    """Sampling by the Gumbel-max trick: the largest of logits / temperature + Gumbel noise is a sample of the
    softmax. Each row has a generator of its own, so that its text depends on its seed alone. Temperature 0 adds
    nothing; a request without a seed draws from the global generator.
    """

    def __init__(self, samplings: Sequence[Sampling]) -> None:
        import torch

        self._samplings = samplings
        self._generators = [
            None if sampling.seed is None else torch.Generator().manual_seed(sampling.seed)
            for sampling in samplings
        ]

    def __call__(self, _: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        import torch

        scores_BV = logits_BV.float()
        for row, (sampling, generator) in enumerate(zip(self._samplings, self._generators, strict=True)):
            if sampling.temperature > 0:
                uniform_V = torch.rand(logits_BV.shape[1], generator=generator, dtype=torch.float64)
                gumbel_V = -torch.log(-torch.log(uniform_V.clamp_min(1e-300)))
                scores_BV[row] = scores_BV[row] / sampling.temperature + gumbel_V.to(scores_BV)
        return scores_BV


class _Pace:
    """Says how far a batch is, now and then: on a CPU one takes minutes, and nothing else is heard of it."""

    def __init__(self, replies: int, most: int) -> None:
        self._replies, self._most, self._done = replies, most, 0
        self._start = self._last = time.monotonic()

    def __call__(self, _: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        now = time.monotonic()
        if self._done and now - self._last > LINE_EVERY_S:
            self._last = now
            left_s = (now - self._start) / self._done * (self._most - self._done)
            say(
                f"the local model has written {self._done} of at most {self._most} tokens of {self._replies} replies, "
                f"at most {left_s:.0f} s left for these"
            )
        self._done += 1
        return logits_BV


def _open_vllm(local: str) -> Complete:
    try:
        from vllm import LLM, SamplingParams
    except ImportError as problem:
        raise ModelError(
            "llm.engine: vllm is not installed; `pip install vllm`, or leave `engine` out to use transformers."
        ) from problem
    engine = LLM(model=resolve_base(local))
    templated = engine.get_tokenizer().chat_template is not None

    def complete(requests: Sequence[Request]) -> list[Reply]:
        sampling = [
            SamplingParams(temperature=s.temperature, max_tokens=s.max_tokens, seed=s.seed)
            for s in (request.sampling for request in requests)
        ]
        if templated:
            conversations = [as_json(request.messages) for request in requests]
            outputs = engine.chat(conversations, sampling, use_tqdm=False)
        else:
            prompts = [prompt_of(engine.get_tokenizer(), request.messages) for request in requests]
            outputs = engine.generate(prompts, sampling, use_tqdm=False)
        return [
            reply_from(
                decoded(engine.get_tokenizer(), output.outputs[0].token_ids),
                output.outputs[0].finish_reason or "stop",
                (len(output.prompt_token_ids), len(output.outputs[0].token_ids)),
            )
            for output in outputs
        ]

    return complete
