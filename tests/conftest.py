"""Fixtures: real tiny models, built from config with random weights, of every architecture that is supported."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_server import ChatServer, serving

ARCHITECTURES = ("qwen3", "llama", "mistral", "gemma", "phi3")
TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "insulin lowers blood glucose and metformin reduces hepatic glucose production",
    "what is the first treatment of type 2 diabetes in adults",
    "Represent this passage\npassage: Given a question, retrieve passages that answer it\nQuery: ",
] * 3


@pytest.fixture(scope="session")
def chromium() -> str:
    """A browser's command. Tests that need one are skipped where there is none, but never in CI, which installs it."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    give_up = pytest.fail if os.environ.get("CI") else pytest.skip
    give_up("no Chromium here; install Debian's package chromium or its like")


def make_tokenizer(folder: Path) -> int:
    """A byte-level BPE tokenizer with 400 entries; returns their number."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)
    return len(fast)


def make_model(architecture: str, folder: Path, seed: int = 0) -> Path:
    """A decoder with random weights of the named architecture, with its tokenizer, in a folder."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    vocabulary = make_tokenizer(folder)
    config = CONFIG_MAPPING[architecture](
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=256, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One random tiny model folder for each supported architecture."""
    root = tmp_path_factory.mktemp("models")
    return {architecture: make_model(architecture, root / architecture) for architecture in ARCHITECTURES}


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Qwen3 decoder."""
    return make_model("qwen3", tmp_path_factory.mktemp("model") / "qwen3")


@pytest.fixture(scope="session")
def base_folder(tiny_model_folder: Path) -> str:
    """The base of the experts below."""
    return str(tiny_model_folder)


@pytest.fixture(scope="session")
def adapter(base_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA expert with random updates of every linear layer."""
    from test_expert import make_expert

    folder = tmp_path_factory.mktemp("adapter") / "a"
    return make_expert(Path(base_folder), folder, seed=1, target_modules="all-linear")


@pytest.fixture(scope="session")
def checkpoints(base_folder: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two full checkpoints near the base, every tensor changed, the second in bfloat16."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    folders = []
    for seed, dtype in ((1, torch.float32), (2, torch.bfloat16)):
        folder = tmp_path_factory.mktemp("full") / str(seed)
        shutil.copytree(base_folder, folder)
        model = AutoModelForCausalLM.from_pretrained(base_folder)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.03 * torch.randn_like(parameter)
        model.to(dtype).save_pretrained(folder)
        folders.append(folder)
    return folders


@pytest.fixture
def server() -> Iterator[ChatServer]:
    """An OpenAI-compatible server on loopback that answers as a test's script says."""
    with serving() as running:
        yield running


@pytest.fixture
def no_proxy_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a proxy nor a key from the environment that the tests run in."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
