"""The loss is the formula's under every option, and gradient caching changes neither it nor its gradients."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.batches import padded
from medley.encoder import RetrieverSettings, build_retriever, token_ids
from medley.errors import ModelError
from medley.pairs import TrainingPair
from medley.train.batches import Keys, keys_of
from medley.train.collate import Collator, as_contrast, batch_texts, near_texts
from medley.train.gradient_cache import GradientCache, cheapest_cuts
from medley.train.loss import Contrast, InfoNCE, contrastive_loss, loss_and_gradient
from medley.train.settings import FalseNegatives, TrainSettings

FOX = "the quick brown fox jumps over the lazy dog and runs into the dark wood at night"
PAIRS = [
    TrainingPair("what does the fox do", FOX, ("the dog sleeps", "insulin lowers blood glucose")),
    TrainingPair("what does the fox do?", "a fox hunts at night"),  # the same query in another row
    TrainingPair("first treatment of diabetes", "metformin", ("the dog sleeps",)),
    TrainingPair("where does the animal run", FOX.replace("night", "dawn")),  # nearly the first positive
    TrainingPair("lowers glucose", "insulin lowers blood glucose", ("A FOX hunts, at night", "metformin")),
    TrainingPair("who sleeps", "the dog sleeps at home " * 4, ("a cat", "a cow", "the dog sleeps")),
]
OPTIONS = [
    InfoNCE(0.05, hard, margin, dims)
    for hard, margin, dims in product(("all", "own"), (None, 0.0), ((), (8, 16)))
]
SETTINGS = TrainSettings(negatives=3)


def retriever(folder, **changes):
    given = {"dtype": "float32", "max_length": 48}
    return build_retriever(
        str(folder), RetrieverSettings(**(given | changes)), instruction="Find", device="cpu"
    )


def features_of(model, pairs=PAIRS, options=SETTINGS, **which):
    batch = Collator(model, pairs, options, keys_of(pairs), **which)(
        [{"row": row} for row in range(len(pairs))]
    )
    return {name.removeprefix("text_"): tensor for name, tensor in batch.items()}


def by_hand(embeddings, contrast: Contrast, options: InfoNCE) -> float:
    """The loss as a loop over queries and passages, in float64."""
    vectors = embeddings.detach().double().numpy()
    sizes = [vectors.shape[1], *options.dims]
    losses = []
    for size in sizes:
        unit = vectors[:, :size] / np.linalg.norm(vectors[:, :size], axis=1, keepdims=True)
        full = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for query, place in enumerate(contrast.query_Q.tolist()):
            positive, own = int(contrast.positive_Q[query]), contrast.own_QN[query].tolist()
            cosine = [float(full[place] @ full[passage]) for passage in contrast.passage_D.tolist()]
            total = 0.0
            for column, passage in enumerate(contrast.passage_D.tolist()):
                if column != positive:
                    if column in contrast.hidden_QK[query].tolist():
                        continue
                    if (
                        options.hard_negatives == "own"
                        and column not in own
                        and not contrast.is_positive_D[column]
                    ):
                        continue
                    too_close = (
                        options.margin is not None and cosine[column] > cosine[positive] + options.margin
                    )
                    if too_close and column not in own:
                        continue
                total += math.exp(float(unit[place] @ unit[passage]) / options.temperature)
            score = float(unit[place] @ unit[contrast.passage_D[positive]])
            losses.append(math.log(total) - score / options.temperature)
    return float(np.mean(losses))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_loss_is_the_formula_under_every_option(tiny_model_folder, options):
    import torch

    contrast = as_contrast(features_of(retriever(tiny_model_folder)))
    embeddings = torch.randn(int(contrast.passage_D.max().maximum(contrast.query_Q.max())) + 1, 32)
    loss, gradient = loss_and_gradient(embeddings, contrast, options, rows=2)
    assert loss.item() == pytest.approx(by_hand(embeddings, contrast, options), rel=1e-5)
    leaf = embeddings.clone().requires_grad_()
    contrastive_loss(leaf, contrast, options).backward()
    torch.testing.assert_close(gradient, leaf.grad, atol=1e-6, rtol=1e-5)


def test_equal_vectors_give_the_log_of_the_number_of_passages():
    import torch

    places = torch.arange(5)
    contrast = Contrast(
        places, places + 5, places, torch.empty(5, 0, dtype=torch.int64), torch.empty(5, 0, dtype=torch.int64),
        torch.ones(5, dtype=torch.bool),
    )  # fmt: skip
    assert loss_and_gradient(torch.ones(10, 4), contrast, InfoNCE(0.02))[0].item() == pytest.approx(
        math.log(5), abs=1e-5
    )


def test_the_same_number_as_sentence_transformers(tiny_model_folder):
    import torch
    from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    model = retriever(tiny_model_folder)
    pairs = [
        TrainingPair(f"query {i} of the fox", f"passage {i} of the dog", (f"negative {i} of the cow",))
        for i in range(6)
    ]
    contrast = as_contrast(features := features_of(model, pairs, TrainSettings()))
    columns = [
        [model.query_prompt() + pair.query for pair in pairs],
        [model.document_prompt + pair.positive for pair in pairs],
        [model.document_prompt + pair.negatives[0] for pair in pairs],
    ]
    plain = MultipleNegativesRankingLoss(model.model, scale=20.0)
    cache = GradientCache(InfoNCE(0.05), pad_token_id=0, max_tokens=64, keep_bytes=0)
    expected = plain([model.model.preprocess(texts) for texts in columns], None)
    assert cache(model.model, features).item() == pytest.approx(expected.item(), abs=1e-5)
    with torch.no_grad():
        vectors = torch.cat(
            [model.model(model.model.preprocess(texts))["sentence_embedding"] for texts in columns]
        )
        places = torch.arange(6)
        whole = Contrast(
            places,
            places.new_tensor(range(6, 18)),
            places,
            contrast.own_QN,
            contrast.hidden_QK,
            contrast.is_positive_D,
        )
        nested = MatryoshkaLoss(model.model, plain, [32, 16], matryoshka_weights=[0.5, 0.5])
    expected = nested([model.model.preprocess(texts) for texts in columns], None)
    assert loss_and_gradient(vectors, whole, InfoNCE(0.05, dims=(16,)))[0].item() == pytest.approx(
        expected.item(), abs=1e-5
    )


def full_batch(model, features, options: InfoNCE):
    """Loss and gradients with all texts padded to one length in one forward pass."""
    lengths = features["lengths"].tolist()
    embeddings = model.model(padded(features["input_ids"], lengths, 0))["sentence_embedding"]
    loss = contrastive_loss(embeddings, as_contrast(features), options)
    loss.backward()
    return loss.item(), gradients_of(model)


def gradients_of(model):
    found = {name: parameter.grad.clone() for name, parameter in model.model.named_parameters()}
    model.model.zero_grad()
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("keep_bytes", [0, 10**6, 10**12])
def test_caching_gives_the_full_batch_s_loss_and_gradients(tiny_model_folder, options, keep_bytes):
    import torch

    model = retriever(tiny_model_folder)
    model.model.train()
    features = features_of(model)
    expected, expected_gradients = full_batch(model, features, options)
    cache = GradientCache(options, pad_token_id=0, max_tokens=96, keep_bytes=keep_bytes)
    loss = cache(model.model, features)
    (loss * 1.0).backward()
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5 * max(scale, 1.0), rtol=1e-5)


def test_what_is_kept_changes_not_one_bit(tiny_model_folder):
    model = retriever(tiny_model_folder)
    model.model.train()
    features = features_of(model)
    found = []
    for keep_bytes in (0, 400_000, 10**12):
        cache = GradientCache(InfoNCE(0.05), pad_token_id=0, max_tokens=64, keep_bytes=keep_bytes)
        loss = cache(model.model, features)
        loss.backward()
        found.append((loss.item(), gradients_of(model)))
    for loss, gradients in found[1:]:
        assert loss == found[0][0]
        assert all((gradients[name] == gradient).all() for name, gradient in found[0][1].items())


def test_dropout_is_repeated_in_the_second_pass(tiny_model_folder):
    import torch
    from peft import LoraConfig

    model = retriever(tiny_model_folder)
    torch.manual_seed(1)
    model.model.add_adapter(
        LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
    )
    model.model.train()
    features = features_of(model)
    found = []
    for keep_bytes in (0, 10**12):
        torch.manual_seed(5)
        cache = GradientCache(InfoNCE(0.05), pad_token_id=0, max_tokens=64, keep_bytes=keep_bytes)
        cache(model.model, features).backward()
        found.append({n: p.grad.clone() for n, p in model.model.named_parameters() if p.requires_grad})
        model.model.zero_grad()
    assert all((found[1][name] == gradient).all() for name, gradient in found[0].items())


def columns_of(features, name):
    """The columns that a row of `own` or `hidden` names."""
    count = len(features["passage"])
    return [sorted(set(row) - {count}) for row in features[name].tolist()]


def test_what_counts_as_a_false_negative(tiny_model_folder):
    model = retriever(tiny_model_folder)
    texts = batch_texts(model, PAIRS, negatives=3)
    assert len(set(texts.texts)) == len(texts.texts), "each text once"
    names = [texts.texts[place].removeprefix(model.document_prompt) for place in texts.passages]
    hidden = [{names[column] for column in row} for row in columns_of(features_of(model), "hidden")]
    assert hidden[0] == {"a fox hunts at night", "A FOX hunts, at night", PAIRS[3].positive}, (
        "known, equal, near"
    )
    assert hidden[1] == {FOX, "A FOX hunts, at night"}
    assert hidden[3] == {FOX} and hidden[2] == hidden[4] == hidden[5] == set()
    none = TrainSettings(negatives=3, false_negatives=FalseNegatives(known=False, near=None))
    assert columns_of(features_of(model, options=none), "hidden") == [[]] * 6
    own = [[names[column] for column in row] for row in columns_of(features_of(model), "own")]
    assert set(own[5]) == {"a cat", "a cow", "the dog sleeps"} and own[1] == []
    assert set(own[4]) == {"A FOX hunts, at night", "metformin"}, (
        "another's positive may be one's hard negative"
    )


def test_a_generated_negative_close_to_its_positive_stays():
    pair = TrainingPair("does it rain", FOX, (FOX.replace("lazy", "eager"),))
    other = TrainingPair("is it cold", "winter is cold")
    near = near_texts([FOX, pair.negatives[0], other.positive], [0, 2], 0.6)
    assert near == [{0, 1}, {2}]
    rows = Keys(*(np.arange(2),) * 3)
    stand_in = type("Prompts", (), {"document_prompt": "", "query_prompt": lambda self, _: ""})()
    collator = Collator(
        stand_in, [pair, other], TrainSettings(false_negatives=FalseNegatives(near=0.6)), rows
    )
    assert collator._hidden(batch_texts(stand_in, [pair, other], negatives=1), [0, 1]) == [[], []]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=7).map(lambda lengths: sorted(lengths, reverse=True)),
    st.integers(20, 150),
    st.integers(0, 30),
)
@settings(max_examples=60, deadline=None)
def test_cuts_are_the_cheapest_of_all(lengths, most, overhead):
    def cost(cuts):
        return sum(lengths[begin] * (end - begin) + overhead for begin, end in cuts)

    def every(begin):
        if begin == len(lengths):
            yield []
        for end in range(begin + 1, len(lengths) + 1):
            if end == begin + 1 or lengths[begin] * (end - begin) <= most:
                yield from ([(begin, end), *rest] for rest in every(end))

    cuts = cheapest_cuts(lengths, max_tokens=most, overhead=overhead)
    assert [begin for begin, _ in cuts] == [0, *(end for _, end in cuts[:-1])] and cuts[-1][1] == len(lengths)
    assert cost(cuts) == min(map(cost, every(0)))


def test_tokens_are_those_of_the_encoder(tiny_model_folder):
    model = retriever(tiny_model_folder, max_length=16)
    texts = ["Find\nQuery: the fox", "a much longer text " * 9]
    expected = model.model.preprocess(texts)
    ids, _ = token_ids(model, texts)
    import torch

    inputs = padded(torch.tensor([token for row in ids for token in row]), [len(row) for row in ids], 0)
    assert all((inputs[name] == expected[name]).all() for name in ("input_ids", "attention_mask"))


class Shop:
    """A device that has memory for so many tokens at a time: asked for more, it raises what a GPU raises."""

    def __init__(self, model, tokens: int) -> None:
        self.asked: list[int] = []
        self._tokens = tokens
        self._hook = model[0].register_forward_pre_hook(self._ask)

    def _ask(self, _module, arguments):
        import torch

        asked = arguments[0]["input_ids"].numel()
        if torch.is_grad_enabled():
            self.asked.append(asked)
            if asked > self._tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")


def test_out_of_memory_shrinks_the_mini_batch_and_not_the_batch(tiny_model_folder, capfd):
    import torch

    model = retriever(tiny_model_folder)
    model.model.train()
    features = features_of(model)
    expected, expected_gradients = full_batch(model, features, InfoNCE(0.05))
    for keep_bytes in (0, 10**12):
        shop = Shop(model.model, tokens=100)
        cache = GradientCache(InfoNCE(0.05), pad_token_id=0, max_tokens=400, keep_bytes=keep_bytes)
        loss = cache(model.model, features)
        loss.backward()
        assert loss.item() == pytest.approx(expected, abs=1e-5)
        for name, gradient in gradients_of(model).items():
            torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-4, rtol=1e-5)
        assert max(shop.asked) > 100 >= shop.asked[-1] and cache.max_tokens <= 100
        assert "tokens; the batch stays as it is" in capfd.readouterr().err
        shop._hook.remove()
    Shop(model.model, tokens=10)
    with pytest.raises(ModelError, match=r"one text of \d+ tokens at a time; lower retriever.max_length"):
        GradientCache(InfoNCE(0.05), pad_token_id=0, max_tokens=400, keep_bytes=0)(
            model.model, features
        ).backward()


@pytest.mark.parametrize("world", [2, 3])
def test_each_process_has_its_share_and_together_they_have_the_batch(tiny_model_folder, world):
    model = retriever(tiny_model_folder)
    alone = features_of(model)
    parts = [features_of(model, rank=rank, world=world) for rank in range(world)]
    assert len({len(part["lengths"]) for part in parts}) == 1
    texts = [text for part in parts for text in split(part)]
    for name in ("query", "passage"):
        whole = split(alone)
        assert [texts[place] for place in parts[0][name]] == [whole[place] for place in alone[name]]
    for part in parts:
        assert (part["widths"] >= part["lengths"]).all() and (part["widths"] == parts[0]["lengths"]).all()
        for name in ("positive", "own", "hidden", "is_positive"):
            assert (part[name] == alone[name]).all()


def split(features):
    ends = np.cumsum(features["lengths"].tolist())
    return [
        tuple(features["input_ids"][end - n : end].tolist())
        for end, n in zip(ends, features["lengths"].tolist(), strict=True)
    ]
