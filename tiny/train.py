"""Train `tiny`, the bundled base model of Medley, from raw text on a CPU.

Order of work: read text, train a tokenizer, language modelling (causal attention), contrastive
pre-training (bidirectional attention, last-token pooling) on unlabelled text pairs (pairs.py), export.

    MEDLEY_DATA=/path/to/data python tiny/train.py --output src/medley/bundled/tiny --checkpoints runs/tiny

Every batch depends on the seed and the step number only, so an interrupted run goes on from its
last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from pairs import PAIR_WEIGHTS, PairSampler, cut_into_chunks, load_documents
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, EOS = "<|pad|>", "<|endoftext|>"
VOCABULARY = 16384
HIDDEN, LAYERS = 256, 4
# A word vector's first dimensions are its content; the rest only take up length. Vectors are brought to one length
# (by F.normalize here, by RMSNorm in the model), so a word that matters little learns to spend its length on them.
CONTENT = 240
QUERY_TOKENS, PASSAGE_TOKENS = 48, (64, 64, 128)  # a batch of passages draws one of these lengths
# The split of Qwen2/Qwen3, so that a loader that assumes their tokenizer cuts text the same way.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that ends every text with the end-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B:1 {EOS}:1", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, model_max_length=512, padding_side="right"
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 model of 6.6 million parameters with random weights."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # compiled, it is faster than the fused CPU kernel's backward pass
    )
    return Qwen3ForCausalLM(config)


@torch.no_grad()
def mean_of_words_model(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Keep the word vectors, draw the layers anew so that the last token starts as the mean of all words' content.

    The end-of-text token's own vector is zero. The last two attention layers attend to all tokens almost evenly and
    copy half of the content each; every other layer starts close to the identity.
    """
    words = F.normalize(model.get_input_embeddings().weight.clone(), dim=-1)
    words[tokenizer.eos_token_id] = 0
    model.load_state_dict(make_model(tokenizer).state_dict())
    model.get_input_embeddings().weight.copy_(
        8 * words
    )  # large, so that tokens remain themselves in every layer
    half = CONTENT // 2
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        attention.q_norm.weight.fill_(0.25)  # scores near zero: attention begins even
        attention.o_proj.weight.mul_(0.01)
        layer.mlp.down_proj.weight.mul_(0.01)
        copied = index - (LAYERS - 2)
        if copied < 0:
            continue
        rows, columns = torch.arange(half), copied * half + torch.arange(half)
        attention.v_proj.weight[rows] = torch.eye(HIDDEN)[columns]
        attention.o_proj.weight.zero_()
        for twin in (0, 1):  # two query heads share one value head
            attention.o_proj.weight[columns, 64 * (2 * (rows // 64) + twin) + rows % 64] = 0.125


def export(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write model (bfloat16) and tokenizer files, replacing each file of an earlier export at once."""
    copy = make_model(tokenizer)
    copy.load_state_dict(model.state_dict())
    copy.config.use_cache = True
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        copy.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.backend_tokenizer.no_padding()  # state of the last call, not part of the tokenizer
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.save_pretrained(folder)
        settings = Path(folder, "tokenizer_config.json")
        kept = json.loads(settings.read_text())
        kept = {key: kept[key] for key in ("eos_token", "pad_token", "padding_side", "model_max_length")}
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"  # understood by all versions of transformers
        settings.write_text(json.dumps(kept, indent=2) + "\n")
        for path in Path(folder).iterdir():
            path.chmod(0o644)
            path.replace(output / path.name)


Encoded = tuple[torch.Tensor, torch.Tensor]


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str], length: int) -> Encoded:
    """Token ids and attention mask, always of the given length (compiled code wants fixed shapes)."""
    texts = [text[: 8 * length] for text in texts]  # the tokenizer would read on to no purpose
    batch = tokenizer(texts, truncation=True, max_length=length, padding="max_length", return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def embed(model: Callable[..., object], batch: Encoded) -> torch.Tensor:
    """Unit vectors: the hidden state of the last token (the end-of-text token)."""
    ids, mask = batch
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state  # type: ignore[attr-defined]
    return F.normalize(hidden[torch.arange(len(ids)), mask.sum(1) - 1].float(), dim=-1)


Bag = tuple[torch.Tensor, torch.Tensor]


def to_bag(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Bag:
    """All texts' token ids but the end-of-text in one row, and where each begins: what `F.embedding_bag` reads."""
    rows = [encoding.ids[:-1] for encoding in tokenizer.backend_tokenizer.encode_batch(texts)]
    starts = torch.tensor([0] + [len(row) for row in rows[:-1]]).cumsum(0)
    return torch.tensor([token for row in rows for token in row]), starts


def mean_of_words(table: torch.Tensor, bag: Bag) -> torch.Tensor:
    """Unit vectors: the mean of the content of the words' unit vectors."""
    content = F.normalize(table, dim=-1)[:, :CONTENT]
    return F.normalize(F.embedding_bag(bag[0], content, bag[1], mode="mean"), dim=-1)


def contrast(queries: torch.Tensor, passages: torch.Tensor, temperature: float) -> torch.Tensor:
    """Symmetric InfoNCE with in-batch negatives."""
    scores, labels = queries @ passages.T / temperature, torch.arange(len(queries))
    return (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2


def accuracy(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, sampler: PairSampler
) -> dict[str, float]:
    """In-batch top-1 accuracy on held-out documents for each pair type (the same pairs every time)."""
    result = {}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for kind in PAIR_WEIGHTS:
            queries, passages = sampler.batch(256, random.Random(f"held out {kind}"), kind)
            q = embed(model.model, encode(tokenizer, queries, QUERY_TOKENS))
            p = embed(model.model, encode(tokenizer, passages, max(PASSAGE_TOKENS)))
            result[kind] = round(((q @ p.T).argmax(1) == torch.arange(len(q))).float().mean().item(), 3)
    return result


def optimise(
    name: str,
    model: Qwen3ForCausalLM,
    loss_of_step: Callable[[int], torch.Tensor],
    steps: int,
    rate: float,
    checkpoints: Path,
    log: Callable[..., None],
    after: Callable[[int], None],
    every: int,
) -> None:
    """AdamW with warm-up and cosine decay, from the stage's last checkpoint if there is one."""
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    checkpoint, first = checkpoints / f"{name}.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    warm_up, began, losses = max(1, steps // 20), time.monotonic(), []
    for step in range(first, steps):
        progress = max(0.0, (step - warm_up) / max(1, steps - warm_up))
        factor = min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimiser.param_groups:
            group["lr"] = rate * factor
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of_step(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 20 == 0 or step + 1 == steps:
            seconds = round(time.monotonic() - began, 1)
            log(stage=name, step=step + 1, loss=round(sum(losses) / len(losses), 4), seconds=seconds)
            losses = []
        if (step + 1) % every == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            after(step + 1)


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description="Train the bundled model from raw text.")
    add = parser.add_argument
    add("--data", type=Path, default=os.environ.get("MEDLEY_DATA"), help="default: $MEDLEY_DATA")
    add("--output", type=Path, required=True, help="folder of the finished model")
    add("--checkpoints", type=Path, required=True, help="folder for checkpoints; resumed from")
    add("--log", type=Path, default=Path(__file__).with_name("loss.jsonl"))
    add("--lm-steps", type=int, default=300)
    add("--lm-batch", type=int, default=32, help="sequences of 256 tokens")
    add("--lm-rate", type=float, default=2e-3)
    add("--words-steps", type=int, default=1200)
    add("--words-batch", type=int, default=1024)
    add("--words-rate", type=float, default=2e-2)
    add("--steps", type=int, default=60, help="contrastive steps")
    add("--batch", type=int, default=512, help="contrastive pairs in a batch")
    add("--rate", type=float, default=1e-4)
    add("--temperature", type=float, default=0.05)
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data or MEDLEY_DATA is needed")
    torch.manual_seed(args.seed)
    torch.set_num_threads(2)
    args.checkpoints.mkdir(parents=True, exist_ok=True)

    def log(**entry: object) -> None:
        print(json.dumps(entry), flush=True)
        with args.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    documents, counts = load_documents(args.data)
    log(stage="data", documents=counts)
    random.Random(args.seed).shuffle(documents)
    held_out, documents = documents[:1500], documents[1500:]

    if not (args.checkpoints / "tokenizer").exists():
        tokenizer = train_tokenizer(f"{title}\n{body}"[:20_000] for _, title, body in documents[:20_000])
        tokenizer.save_pretrained(args.checkpoints / "tokenizer")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.checkpoints / "tokenizer")
    model = make_model(tokenizer)
    log(stage="model", parameters=model.num_parameters(), torch=torch.__version__)

    # Language modelling on packed text, causal attention.
    needed, stream = args.lm_steps * args.lm_batch * 256, []
    for _, title, body in documents:
        stream += tokenizer(f"{title}\n{body}"[:20_000])["input_ids"]
        if len(stream) >= needed:
            break
    blocks = torch.tensor(stream[: len(stream) // 256 * 256]).view(-1, 256)
    order = torch.randperm(len(blocks))

    def language_loss(ids: torch.Tensor) -> torch.Tensor:
        hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
        logits = F.linear(hidden, model.lm_head.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())

    compiled_loss = torch.compile(language_loss, dynamic=False)

    def language_step(step: int) -> torch.Tensor:
        rows = torch.arange(step * args.lm_batch, (step + 1) * args.lm_batch) % len(order)
        return compiled_loss(blocks[order[rows]])

    def save(step: int) -> None:
        export(model, tokenizer, args.output)

    steps, rate = args.lm_steps, args.lm_rate
    optimise("lm", model, language_step, steps, rate, args.checkpoints, log, save, every=100)

    # Contrastive pre-training of the word vectors alone (mean of unit vectors), then of the whole model
    # with bidirectional attention.
    torch._dynamo.reset()
    model.config.is_causal = False
    word_counts: Counter[str] = Counter()
    for _, title, body in documents[:8000]:
        word_counts.update(set(re.findall(r"[^\W\d_][\w-]+", f"{title} {body}"[:5000].lower())))
    chunks = [chunk for document in documents for chunk in cut_into_chunks(*document)]
    held_out_chunks = [chunk for document in held_out for chunk in cut_into_chunks(*document)]
    sampler = PairSampler(chunks, word_counts, 8000)
    examiner = PairSampler(held_out_chunks, word_counts, 8000)
    log(stage="pairs", chunks={kind: len(pool) for kind, pool in sampler.pools.items()})

    def words_loss(step: int) -> torch.Tensor:
        queries, passages = sampler.batch(args.words_batch, random.Random(f"{args.seed}-words-{step}"))
        table = model.get_input_embeddings().weight
        with torch.autocast("cpu", enabled=False):
            left = mean_of_words(table, to_bag(tokenizer, queries))
            right = mean_of_words(table, to_bag(tokenizer, passages))
        return contrast(left, right, args.temperature)

    with torch.no_grad():  # begin with a quarter of each word's length off its content
        table = model.get_input_embeddings().weight
        table.copy_(F.normalize(table, dim=-1))
        table[:, CONTENT:] += 0.25 / math.sqrt(HIDDEN - CONTENT)
    steps, rate = args.words_steps, args.words_rate
    optimise("words", model, words_loss, steps, rate, args.checkpoints, log, save, every=100)

    torch.manual_seed(args.seed + 1)
    mean_of_words_model(model, tokenizer)
    log(stage="held-out", step=0, accuracy=accuracy(model, tokenizer, examiner))
    compiled = torch.compile(model.model, dynamic=False)

    def contrastive_loss(step: int) -> torch.Tensor:
        rng = random.Random(f"{args.seed}-{step}")
        queries, passages = sampler.batch(args.batch, rng)
        left = embed(compiled, encode(tokenizer, queries, QUERY_TOKENS))
        right = embed(compiled, encode(tokenizer, passages, rng.choice(PASSAGE_TOKENS)))
        return contrast(left, right, args.temperature)

    def after(step: int) -> None:
        log(stage="held-out", step=step, accuracy=accuracy(model, tokenizer, examiner))
        export(model, tokenizer, args.output)

    steps, rate = args.steps, args.rate
    optimise("contrastive", model, contrastive_loss, steps, rate, args.checkpoints, log, after, every=20)


if __name__ == "__main__":
    main()
