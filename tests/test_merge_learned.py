"""Weights learned by gradient: what the gradient is, and that following it lowers the loss within the budget."""

from __future__ import annotations

import numpy as np
import pytest

from medley.encoder import build_retriever, encode_passages, encode_queries, encode_with_gradient
from medley.errors import RecipeError
from medley.expert import read_expert
from medley.merge.candidates import candidates
from medley.merge.coefficients import Layout, layer_cuts
from medley.merge.concatenated import ConcatenatedAdapter
from medley.merge.learned import Learnable, _loss, _questions, _scales
from medley.merge.pool import (
    build_pool,
    embed_pool,
)
from medley.merge.search import search
from medley.merge.settings import MergeParameters
from medley.merge.space import SearchSpace
from medley.merge.trials import Trials
from test_expert import FLOAT32, make_expert
from test_merge_search import GRID, WORDS, asked, make_collection


def attached_world(tiny_model_folder, tmp_path, *, cuts=()):
    experts = [
        read_expert(make_expert(tiny_model_folder, tmp_path / str(s), seed=s, size=0.05)) for s in (1, 2)
    ]
    retriever = build_retriever(str(tiny_model_folder), FLOAT32, device="cpu")
    return retriever, experts, Layout(cuts), [build_pool(make_collection())]


def test_a_batch_with_gradient_is_encoded_like_any_other(tiny_model_folder):
    retriever = build_retriever(str(tiny_model_folder), FLOAT32, device="cpu")
    texts = [" ".join(WORDS[:n]) for n in (1, 5, 9)]
    prompt = retriever.query_prompt("Find it")
    found = encode_with_gradient(retriever, texts, task="query", prompt=prompt)
    assert found.requires_grad
    np.testing.assert_allclose(
        found.detach().numpy(), encode_queries(retriever, texts, instruction="Find it"), atol=1e-6
    )
    found = encode_with_gradient(retriever, texts, task="document", prompt=retriever.document_prompt)
    np.testing.assert_allclose(found.detach().numpy(), encode_passages(retriever, texts), atol=1e-6)


def test_the_gradient_of_the_coefficients_is_that_of_finite_differences(tiny_model_folder, tmp_path):
    import torch

    retriever, experts, layout, pools = attached_world(tiny_model_folder, tmp_path, cuts=(1,))
    with ConcatenatedAdapter(retriever, experts, layout=layout) as adapter:
        space = SearchSpace(("a", "b"), GRID, layout.segment_count, "task_arithmetic")
        trials = Trials(lambda _: [embed_pool(retriever, p) for p in pools], pools, space, budget=5)
        questions = _questions(trials, trials.vectors(np.zeros(space.shape)))[:6]

        def loss(weights):
            set_scales(weights)
            return _loss(retriever, questions, np.random.default_rng(0))

        before = {name: tensor.clone() for name, tensor in retriever.model.state_dict().items()}
        with _scales(Learnable(retriever, experts, layout)) as set_scales:
            weights = torch.full(space.shape, 0.5, requires_grad=True)
            loss(weights).backward()
            for index in np.ndindex(*space.shape):
                step = torch.zeros(space.shape)
                step[index] = 1e-2
                with torch.no_grad():
                    slope = (loss(weights + step) - loss(weights - step)) / 2e-2
                assert float(weights.grad[index]) == pytest.approx(float(slope), rel=0.05, abs=2e-3)
        assert all(torch.equal(before[name], t) for name, t in retriever.model.state_dict().items())
        assert next(retriever.model.parameters()).requires_grad
        adapter.set_coefficients(np.ones(space.shape))


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_learned_weights_lower_the_loss_within_the_budget(method, tiny_model_folder, tmp_path):
    retriever, experts, _, pools = attached_world(tiny_model_folder, tmp_path)
    layout = Layout(layer_cuts("layers", retriever.model[0].model.config.num_hidden_layers))
    space = SearchSpace(("a", "b"), GRID, layout.segment_count, method)
    with candidates(
        retriever, experts, method=method, parameters=MergeParameters.model_validate({}), layout=layout
    ) as apply:

        def embed(effective_KS):
            return [embed_pool(apply(effective_KS), pool) for pool in pools]

        learnable = Learnable(retriever, experts, layout)
        found = search(embed, pools, space, asked("learned", 12), learnable=learnable)
        tied = search(embed, pools, space, asked("learned", 12, penalty=1e6), learnable=learnable)
        with pytest.raises(RecipeError, match="learned needs"):
            search(embed, pools, space, asked("learned", 12))
        with pytest.raises(RecipeError, match="raise `encodings`"):
            search(embed, pools, space, asked("learned", 4), learnable=learnable)
    assert found.encodings <= 12
    assert len(found.candidates) == 3
    last = found.candidates[-1].weights
    assert np.abs(last - space.uniform()).max() > 0.05
    spread = tied.candidates[-1].weights.std()
    assert spread < 0.05 < last.std() + 0.05 and spread < last.std()
