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
    """A Qwen3 model of 7.7 million parameters with random weights."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
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
def prepare_for_pooling(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Keep the word vectors, draw the layers anew so that the last token starts as a mean of all tokens.

    The end-of-text token's own vector is zero and every attention layer first copies (value and output
    projections are each other's transpose), so that its state is at first a projection of the mean.
    """
    words = model.get_input_embeddings().weight.clone()
    words[tokenizer.eos_token_id] = 0
    model.load_state_dict(make_model(tokenizer).state_dict())
    model.get_input_embeddings().weight.copy_(8 * words)  # large enough for tokens to remain themselves
    for layer in model.model.layers:
        attention = layer.self_attn
        torch.nn.init.orthogonal_(attention.v_proj.weight)
        by_head = attention.v_proj.weight.view(2, 1, 64, 256).expand(
            2, 2, 64, 256
        )  # two heads share one value
        attention.o_proj.weight.copy_(by_head.reshape(256, 256).T / 2)


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


def embed(model: Callable[..., object], batch: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors: the hidden state of the last token (the end-of-text token), and the mean of all."""
    ids, mask = batch
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state  # type: ignore[attr-defined]
    last = hidden[torch.arange(len(ids)), mask.sum(1) - 1].float()
    mean = (hidden * mask.unsqueeze(-1)).float().sum(1)
    return F.normalize(last, dim=-1), F.normalize(mean, dim=-1)


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
            q, _ = embed(model.model, encode(tokenizer, queries, QUERY_TOKENS))
            p, _ = embed(model.model, encode(tokenizer, passages, max(PASSAGE_TOKENS)))
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
    add("--words-steps", type=int, default=200)
    add("--words-batch", type=int, default=512)
    add("--words-rate", type=float, default=3e-3)
    add("--steps", type=int, default=480, help="contrastive steps")
    add("--batch", type=int, default=128, help="contrastive pairs in a batch")
    add("--rate", type=float, default=7e-4)
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
    table = model.get_input_embeddings()

    def words_loss(step: int) -> torch.Tensor:
        rng = random.Random(f"{args.seed}-words-{step}")
        vectors = []
        for texts, length in zip(sampler.batch(args.words_batch, rng), (48, 96), strict=True):
            ids, mask = encode(tokenizer, texts, length)
            vectors.append(F.normalize((F.normalize(table(ids), dim=-1) * mask.unsqueeze(-1)).sum(1), dim=-1))
        return contrast(vectors[0], vectors[1], args.temperature)

    steps, rate = args.words_steps, args.words_rate
    optimise("words", model, words_loss, steps, rate, args.checkpoints, log, save, every=100)

    torch.manual_seed(args.seed + 1)
    prepare_for_pooling(model, tokenizer)
    compiled = torch.compile(model.model, dynamic=False)

    def contrastive_loss(step: int) -> torch.Tensor:
        rng = random.Random(f"{args.seed}-{step}")
        queries, passages = sampler.batch(args.batch, rng)
        q_last, q_mean = embed(compiled, encode(tokenizer, queries, QUERY_TOKENS))
        p_last, p_mean = embed(compiled, encode(tokenizer, passages, rng.choice(PASSAGE_TOKENS)))
        with torch.autocast("cpu", enabled=False):
            # Mean vectors learn from the first step and show the last token the way; their weight fades.
            loss = contrast(q_last, p_last, args.temperature)
            helper = contrast(q_mean, p_mean, args.temperature)
            helper = helper + contrast(q_last, p_mean, args.temperature) / 2
            helper = helper + contrast(q_mean, p_last, args.temperature) / 2
            if step % 20 == 19:
                log(stage="contrastive, last token only", step=step + 1, loss=round(loss.item(), 4))
            return loss + helper * (1 - step / args.steps) / 2

    def after(step: int) -> None:
        log(stage="held-out", step=step, accuracy=accuracy(model, tokenizer, examiner))
        export(model, tokenizer, args.output)

    steps, rate = args.steps, args.rate
    optimise("contrastive", model, contrastive_loss, steps, rate, args.checkpoints, log, after, every=120)


if __name__ == "__main__":
    main()
