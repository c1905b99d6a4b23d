"""A language model in this process, and `transformers serve` in another one, behind the same interface."""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from medley.collections import BUNDLED
from medley.errors import ModelError
from medley.llm import (
    ChatModel,
    LlmSettings,
    Message,
    Reply,
    Request,
    Sampling,
    complete,
    complete_many,
    complete_structured,
    open_chat,
)
from medley.llm.local import _SeededNoise, decoded, prompt_of
from medley.llm.messages import reply_from
from transformers_serve import needs_serving, transformers_serve

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
TEXTS = ["metformin lowers", "a", "the heart is a muscle that pumps blood through the body and", "vitamin D"]


def requests(**sampling: float) -> list[Request]:
    return [
        Request((Message("user", text),), Sampling(seed=seed, max_tokens=12, **sampling))
        for seed, text in enumerate(TEXTS * 3)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base's tokenizer and shape with random weights: trained ones repeat their last word."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("random") / "model"
    shutil.copytree(BUNDLED / "tiny", folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def local(folder: Path) -> ChatModel:
    return open_chat(LlmSettings(local=str(folder), concurrency=8))


def test_a_text_depends_on_its_request_and_seed_and_not_on_its_batch(local: ChatModel) -> None:
    together = complete_many(local, requests(), concurrency=12)
    alone = [complete(local, r.messages, sampling=r.sampling) for r in requests()]
    assert [r.text for r in together] == [r.text for r in alone]
    assert len({r.text for r in together}) >= 10  # seeds differ
    assert all(0 < r.completion_tokens <= 12 and r.prompt_tokens > 0 for r in together)
    assert local.ledger.calls == 24 and local.ledger.usd is None


def test_temperature_zero_is_the_models_own_greedy_decoding(local: ChatModel, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for request, got in zip(
        requests(temperature=0), complete_many(local, requests(temperature=0)), strict=True
    ):
        inputs = tokenizer(prompt_of(tokenizer, request.messages), return_tensors="pt")
        wanted = model.generate(**inputs, do_sample=False, max_new_tokens=12, repetition_penalty=1.0)
        new = wanted[0, inputs["input_ids"].shape[1] :]
        assert got.text == tokenizer.decode(new, skip_special_tokens=True)
        assert got.prompt_tokens == inputs["input_ids"].shape[1]


def test_thinking_is_left_out_even_where_its_marks_are_special_tokens(folder: Path) -> None:
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    plain = decoded(tokenizer, words("the heart"))
    tokenizer.add_tokens(
        [AddedToken(mark, special=True) for mark in ("<|channel|>", "<|message|>", "<|end|>", "<|x|>")]
    )
    written = words("<|channel|>analysis<|message|>vitamin<|end|><|channel|>final<|message|>the heart<|x|>")
    assert "vitamin" in tokenizer.decode(written, skip_special_tokens=True)
    assert reply_from(decoded(tokenizer, written), "stop", (1, 1)) == Reply(plain, "stop", 1, 1)
    assert reply_from(
        decoded(tokenizer, words("<|channel|>analysis<|message|>vitamin")), "length", (1, 1)
    ).problem == ("only_reasoning")
    assert decoded(tokenizer, words("the heart<|x|>")) == plain


def test_a_batch_that_takes_long_is_told_of(
    local: ChatModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medley.llm.local.LINE_EVERY_S", -1.0)
    complete_many(local, requests()[:2], concurrency=2)
    lines = [line for line in capfd.readouterr().err.splitlines() if "has written" in line]
    assert "has written 1 of at most 12 tokens of 2 replies, at most " in lines[0] and len(lines) <= 11


def test_seeded_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    rows = 4000
    noise = _SeededNoise([Sampling(seed=seed, temperature=0.5) for seed in range(rows)])
    drawn = noise(torch.empty(0), logits.repeat(rows, 1)).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=4) / rows
    assert torch.allclose(shares, torch.softmax(logits / 0.5, 0), atol=0.03)


def test_longest_replies_differ_within_a_batch(local: ChatModel) -> None:
    asked = [Request((Message("user", "the heart"),), Sampling(seed=1, max_tokens=n)) for n in (2, 5, 9)]
    replies = complete_many(local, asked, concurrency=3)
    assert [r.completion_tokens for r in replies if r.finish_reason == "length"] == [
        n for n, r in zip((2, 5, 9), replies, strict=True) if r.finish_reason == "length"
    ]
    assert replies[2].text.startswith(replies[1].text) and replies[1].text.startswith(replies[0].text)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a chat template."""
    folder = tmp_path_factory.mktemp("chatty") / "tiny"
    shutil.copytree(BUNDLED / "tiny", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_a_chat_template_is_used_where_there_is_one(chatty: Path, local: ChatModel) -> None:
    from transformers import AutoTokenizer

    messages = (Message("system", "be brief"), Message("user", "hello"))
    assert (
        prompt_of(AutoTokenizer.from_pretrained(chatty), messages) == "<system>be brief<user>hello<assistant>"
    )
    assert prompt_of(AutoTokenizer.from_pretrained(BUNDLED / "tiny"), messages) == "be brief\n\nhello\n\n"
    chat = open_chat(LlmSettings(local=str(chatty)))
    assert chat.name != local.name and chat.name.startswith(f"{chatty}@")
    assert complete(chat, messages, sampling=Sampling(max_tokens=3)).completion_tokens == 3


def test_replies_of_a_local_model_are_cached_under_its_content(tmp_path: Path) -> None:
    chat = open_chat(LlmSettings(local="tiny"), tmp_path / "replies.jsonl")
    first = complete_many(chat, requests())
    again = open_chat(LlmSettings(local="tiny"), tmp_path / "replies.jsonl")
    assert complete_many(again, requests()) == first and again.ledger.calls == 0
    assert again.ledger.from_cache == len(first)


def test_what_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        open_chat(LlmSettings(local=str(tmp_path / "nothing")))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be opened as a causal language model"):
        open_chat(LlmSettings(local=str(tmp_path)))
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(ModelError, match="pip install vllm"):
            open_chat(LlmSettings(local="tiny", engine="vllm"))


@pytest.fixture(scope="module")
def real_server(chatty: Path) -> Iterator[str]:
    """A `transformers serve` process with the tiny base."""
    with transformers_serve(chatty) as url:
        yield url


@pytest.mark.slow
@needs_serving
def test_transformers_serve_is_an_endpoint(real_server: str, chatty: Path, tmp_path: Path) -> None:
    settings = LlmSettings(base_url=real_server, model=str(chatty), timeout_s=60)
    chat = open_chat(settings, tmp_path / "replies.jsonl")
    replies = complete_many(chat, requests(), concurrency=3)
    assert Counter(r.problem for r in replies)["rejected"] == 0 and chat.ledger.calls == 12
    assert all(r.text and 0 < r.completion_tokens <= 12 for r in replies)
    assert all(r.prompt_tokens > 0 for r in replies)
    again = open_chat(settings, tmp_path / "replies.jsonl")
    assert complete_many(again, requests()) == replies and again.ledger.calls == 0


@pytest.mark.slow
@needs_serving
def test_structured_output_is_validated_whatever_the_server_makes_of_it(
    real_server: str, chatty: Path
) -> None:
    class Verdict(BaseModel):
        grade: int

    chat = open_chat(LlmSettings(base_url=real_server, model=str(chatty), timeout_s=60))
    results = list(complete_structured(chat, requests(), Verdict))
    # a base of four million parameters writes no JSON; every reply is named, none is taken for a value
    assert {result.problem for result in results} <= {"invalid", "truncated"} and len(results) == 12
    assert chat.ledger.calls == 12
