"""Instructions: the list, local search, checks, racing, the proof, and what a recipe says of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.errors import InputError, RecipeError
from medley.prompts.checks import known_from, problem_of
from medley.prompts.choose import choose
from medley.prompts.edit import neighbours, thesaurus
from medley.prompts.feedback import distinctions, in_words, look_at
from medley.prompts.generic import drawn_for, generic_instructions
from medley.prompts.library import Library, read_library
from medley.prompts.proof import halves, prove
from medley.prompts.racing import hopeless, race
from medley.prompts.settings import PromptSettings
from medley.recipe import load_recipe
from prompt_parts import KnownScorer, dev_set, paired_test, words_of
from small import write_collection, write_recipe

SEED = "Given a question, find documents"
BEST = "Given a clinical question, retrieve abstracts that answer it"


def scorer_of(best: str = BEST, count: int = 200, noise: float = 0.05) -> KnownScorer:
    return KnownScorer(words_of(best), [dev_set(count)], noise)


# The library


def test_the_library_is_large_and_has_no_sentence_twice() -> None:
    library = read_library()
    assert len(library.entries) >= 60 and library.version >= 2
    assert len({text.lower() for text in library.texts}) == len(library.texts)
    assert len({entry.kind for entry in library.entries}) >= 5
    assert len({entry.domain for entry in library.entries}) >= 8
    assert len(library.domain_free) >= 50
    assert all(problem_of(text, known_from([], [])) == "" for text in library.texts), "tried as they stand"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("instructions: [find it, find it]", "holds 'find it' twice"),
        ("instructions: [{text: find it, knd: x}]", r"instructions\[0\]: knd"),
        ("instructions: []", "holds no instruction"),
        ("- a", "a library is"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_library_is_told_with_its_place(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        read_library(path)


# Local search


def test_neighbours_are_one_change_away() -> None:
    found = neighbours("Given a claim, retrieve documents that support or refute the claim")
    assert found["Retrieve documents that support or refute the claim"] == "edit: without 'Given a claim'"
    assert (
        found["Given a claim, find documents that support or refute the claim"]
        == "edit: 'retrieve' -> 'find'"
    )
    assert "Retrieve documents that support or refute the claim, given a claim" in found
    assert not any("  " in text or ",," in text or text.endswith(",") for text in found)


@given(st.sampled_from(read_library().texts))
@settings(max_examples=30, deadline=None)
def test_neighbours_are_others_the_same_each_time(text: str) -> None:
    found = neighbours(text)
    assert text not in found and list(found) == list(neighbours(text))
    assert all(len(other.split()) >= 3 for other in found)


def test_the_thesaurus_replaces_whole_words_only() -> None:
    assert not any("text" in group for group in thesaurus() if "retrieve" in group)
    assert not any(
        re.search(r"\bcontextbook", text) for text in neighbours("Find the textbook in context please")
    )
    assert neighbours("Find the textbook in context please").keys() >= {
        "Retrieve the textbook in context please"
    }


def test_edit_climbs_to_a_better_instruction_and_keeps_its_lineage() -> None:
    scorer = scorer_of("Retrieve passages that answer the question", noise=0.01)
    choice = choose(
        PromptSettings(method="edit"),
        "Find documents that answer the query",
        scorer,
        test=paired_test,
        seed=1,
    )
    assert choice.instruction == "Retrieve passages that answer the question"
    assert choice.proof is not None and choice.proof.verdict == "better"
    assert choice.found is not None
    place, steps = choice.found.candidates.index(choice.found.best), 0
    while choice.found.candidates[place].parent is not None:
        place, steps = choice.found.candidates[place].parent, steps + 1
    assert place == 0 and steps == 3


# Checks


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "says nothing"),
        ("Find it", "has 2 words only"),
        ("find " * 10, "repeats itself"),
        ("word " + " ".join(f"word{i}" for i in range(70)), "has 71 words"),
        ("#### **** ==== a ---- b ++++ c", "is not made of words"),
        ("Retrieve passages that give a high nDCG", "names a metric"),
        ("Retrieve passages so that recall@100 is high", "names a metric"),
        ("Make sure that the answer is ranked first", "names a metric or a rank"),
        ("Retrieve passages and summarize them", "asks for what a retriever cannot do"),
        ("Retrieve passages, but do not return reviews", "asks for what a retriever cannot do"),
        ("If the query is a claim, retrieve evidence", "asks for what a retriever cannot do"),
        ("Retrieve passages on whether metformin lowers glucose quickly", "repeats a dev query"),
        ("Find trials of metformin for glucose control", "names things out of one dev query"),
        ("Find passages on brca1 variants", "names something out of a dev query ('brca1')"),
        ("Find passages on NSAID safety", "names something out of a dev query ('nsaid')"),
        ("Given a medical question, retrieve the passage that answers it", ""),
        ("Given a clinical question, find the trial whose outcome settles it", ""),
        ("Find passages on medicines for adults", ""),
    ],
)
def test_proposals_that_must_not_be_tried(text: str, reason: str) -> None:
    queries = [
        "whether metformin lowers glucose",
        "is BRCA1 inherited",
        "nsaid and bleeding",
        "medicines for adults",
    ]
    found = problem_of(text, known_from(queries * 1, ["Given a question, find medicines"]))
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_what_the_seed_instruction_says_is_no_leak() -> None:
    queries = ["covid vaccines for adults", "is masking useful against covid"]
    assert problem_of("Given a query on covid vaccines, retrieve passages", known_from(queries, [])) != ""
    allowed = known_from(queries, ["Given a query on covid vaccines"])
    assert problem_of("Given a query on covid vaccines, retrieve passages", allowed) == ""


# Racing


def test_a_race_drops_the_hopeless_and_gives_the_rest_their_full_scores() -> None:
    scorer = scorer_of(noise=0.1)
    texts = [SEED, BEST, *(f"candidate number {i} of no use" for i in range(30))]
    rows = np.random.default_rng(1).permutation(200)
    found = race(texts, scorer.scores, scorer.weights, rows, keep=[SEED])
    assert [r.instruction for r in found] == texts
    by_text = {r.instruction: r for r in found}
    assert by_text[BEST].finished and by_text[SEED].finished, "the seed is kept, however bad"
    assert sum(r.finished for r in found) < 10
    for r in found:
        whole = scorer.scores([r.instruction], rows[: r.queries])[0].mean()
        assert r.score == pytest.approx(whole, abs=1e-12) and r.finished == (r.queries == 200)
    assert sum(r.queries for r in found) < 0.5 * len(texts) * 200


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 60))
@settings(max_examples=40, deadline=None)
def test_only_the_worse_half_can_be_hopeless_and_never_the_leader(
    seed: int, candidates: int, queries: int
) -> None:
    values = np.random.default_rng(seed).uniform(size=(candidates, queries))
    weights = np.full(queries, 1 / queries)
    out = hopeless(values, weights)
    order = np.argsort(-(values @ weights), kind="stable")
    assert set(out) <= set(order[-(-candidates // 2) :].tolist()) and len(set(out)) == len(out)
    shifted = values.copy()
    shifted[order[0]] += 5  # paired differences are then all of one sign and large
    assert set(hopeless(shifted, weights)) == set(order[-(-candidates // 2) :].tolist())


def test_equal_candidates_are_not_dropped() -> None:
    values = np.tile(np.random.default_rng(0).uniform(size=50), (4, 1))
    assert hopeless(values, np.full(50, 0.02)) == []


# The proof


def test_halves_are_disjoint_cover_all_and_mix_the_collections() -> None:
    scorer = KnownScorer(lambda _: 0.5, [dev_set(41, "a"), dev_set(10, "b")])
    parts = halves(scorer, 3)
    assert sorted([*parts.choose, *parts.confirm]) == list(range(51))
    names = [scorer.queries[row].dev.name for row in parts.choose]
    assert names.count("a") == 21 and names.count("b") == 5
    assert 1 <= names[:8].count("b") <= 3, "a race sees every collection from its start"
    again = halves(scorer, 3)
    assert (again.choose == parts.choose).all() and (again.confirm == parts.confirm).all()
    assert (halves(scorer, 4).choose != parts.choose).any()


@pytest.mark.parametrize(
    ("best", "verdict"),
    [(BEST, "better"), (SEED, "seed is best"), ("Given a question, find texts", "no significant difference")],
)
def test_the_verdict(best: str, verdict: str) -> None:
    scorer = scorer_of()
    value = scorer.value
    scorer.value = lambda text: value(SEED) if text == "Given a question, find texts" else value(text)
    proof = prove(
        scorer, np.arange(100, 200), best=best, seed_instruction=SEED, library=read_library().texts, test=paired_test,
        alpha=0.05, seed=1,
    )  # fmt: skip
    assert proof.verdict == verdict and proof.queries == 100 and proof.random_count == 20
    assert proof.best == pytest.approx(scorer.means([best], np.arange(100, 200))[0])
    assert proof.no_instruction == pytest.approx(scorer.means([""], np.arange(100, 200))[0])
    assert proof.random_low <= proof.random_mean <= proof.random_high and proof.random_spread > 0
    worse = prove(
        scorer,
        np.arange(100, 200),
        best=SEED,
        seed_instruction=BEST,
        library=[],
        test=paired_test,
        alpha=0.05,
        seed=1,
    )
    assert worse.verdict == "worse" and worse.random_mean is None


def test_a_lucky_candidate_does_not_replace_the_seed() -> None:
    """All are equally good: the best on one half is luck, and the other half says so, nearly always."""
    changed = []
    for seed in range(12):
        scorer = KnownScorer(lambda _: 0.5, [dev_set(60)], noise=0.1)
        choice = choose(PromptSettings(), SEED, scorer, test=paired_test, seed=seed)
        assert choice.found is not None and choice.found.best.instruction != SEED
        changed.append(choice.changes)
        assert choice.instruction == (choice.found.best.instruction if choice.changes else SEED)
    assert sum(changed) <= 2


def test_nothing_is_chosen_by_the_confirming_queries() -> None:
    scorer = scorer_of()
    parts = halves(scorer, 5)
    choice = choose(PromptSettings(), SEED, scorer, test=paired_test, seed=5)
    unproven = {t for t, row in scorer.asked if row in set(parts.confirm)}
    assert len(unproven) <= 23 and choice.found is not None and len(choice.found.candidates) >= 90
    assert choice.changes and choice.as_json()["library_version"] == read_library().version


def test_one_query_is_too_few_and_the_seed_stays() -> None:
    choice = choose(PromptSettings(), SEED, scorer_of(count=1), test=paired_test, seed=1)
    assert choice.instruction == SEED and choice.proof is not None
    assert choice.proof.verdict == "too few queries" and choice.proof.best is None


# Feedback


def test_feedback_names_the_rank_what_came_before_and_what_tells_them_apart() -> None:
    scorer = scorer_of(count=12)
    failure = look_at(scorer, SEED, 4)
    assert failure.rank == 3 and [p.id for p in failure.before] == ["p005", "p006"]
    told = in_words(failure)
    assert (
        "Query: does the skin heal in case4" in told and "on rank 3: The skin heals slowly in case 4." in told
    )
    assert "Wrongly before it, on rank 1: The bone heals slowly in case 5." in told
    lines = "\n".join(distinctions(failure))
    assert "words of the query in the relevant passage only: skin" in lines
    assert "the wrong passages speak of: bone" in lines
    assert "nerve" in lines


# Generic


def test_generic_instructions_are_drawn_from_those_that_name_no_field() -> None:
    library = read_library()
    found, rejected = generic_instructions(20, library, seed=1)
    assert len(found) == 20 and set(found) <= set(library.domain_free) and not rejected
    assert found != generic_instructions(20, library, seed=2)[0]
    with pytest.raises(InputError, match="100 generic instructions are wanted"):
        generic_instructions(100, library, seed=1)
    with pytest.raises(InputError, match="the library has 0"):
        generic_instructions(2, Library(1, ()), seed=1)


def test_each_query_is_given_one_of_them_and_all_are_used() -> None:
    queries = [f"query {i}" for i in range(400)]
    given_ = drawn_for(queries, ["a", "b", "c", "d"], seed=1)
    counts = [given_.count(x) for x in "abcd"]
    assert sum(counts) == 400 and min(counts) > 60
    assert drawn_for(queries[:7], ["a", "b", "c", "d"], seed=1) == given_[:7], "other rows change nothing"


# The recipe


def recipe_of(tmp_path: Path, **changes: object) -> Path:
    return write_recipe(tmp_path / "r.yaml", "tiny", write_collection(tmp_path / "coll"), **changes)


@pytest.mark.parametrize(
    ("condition", "kinds", "method"),
    [
        ("FT", ("judged", "mined"), "none"),
        ("SHN", ("generated", "judged", "mined"), "none"),
        ("PO", ("judged", "mined"), "edit"),
        ("SHN+PO", ("generated", "judged", "mined"), "edit"),
    ],
)
def test_the_papers_conditions_are_one_switch(
    tmp_path: Path, condition: str, kinds: tuple[str, ...], method: str
) -> None:
    recipe = load_recipe(recipe_of(tmp_path, condition=condition, **{"prompts.method": "edit"}))
    for expert in recipe.experts.values():
        assert recipe.kinds_of(expert) == kinds and recipe.prompt_method(expert) == method
    assert recipe.merged_prompt_method == "none"
    after = load_recipe(tmp_path / "r.yaml", ["prompts.when=after"])
    assert after.merged_prompt_method == method
    assert {after.prompt_method(expert) for expert in after.experts.values()} == {"none"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["condition=PO", "prompts.method=none"], "optimises instructions, and prompts.method is none"),
        (["condition=SHN", "negatives.generated=null"], "needs generated negatives"),
        (["condition=FT", "negatives.kinds=[mined]"], "negatives.kinds: `condition` says which"),
        (["condition=FT", "negatives.condition=mined"], "negatives.condition: `condition` says which"),
        (["condition=FT", "experts.a.prompts=none"], "experts.a.prompts: `condition` says it"),
        (["condition=FT", "experts.a.negatives=[mined]"], "experts.a.negatives: `condition` says it"),
        (["condition=XY"], "condition: input should be 'FT', 'SHN', 'PO' or 'SHN\\+PO'"),
        (["prompts.method=gepa"], "gepa needs a language model"),
        (["experts.b.prompts=gepa"], "gepa needs a language model"),
        (["prompts.methd=edit"], "did you mean 'method'"),
        (["prompts.when=later"], "prompts.when: input should be 'before', 'after' or 'both'"),
    ],
)
def test_what_a_recipe_may_not_say(tmp_path: Path, changes: list[str], said: str) -> None:
    path = recipe_of(tmp_path)
    with pytest.raises(RecipeError, match=said):
        load_recipe(path, changes)
