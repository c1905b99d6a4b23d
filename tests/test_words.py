"""What a word is: marks are kept, forms of one text are one, scripts without spaces are cut so that things are found."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.collections import Passage, in_memory
from medley.leaks.find import find_leaks
from medley.leaks.words import hash_texts
from medley.mine import MiningSettings, mine_negatives
from medley.overlap import normal_form
from medley.pairs import TrainingPair
from medley.search import Bm25Index, rank_with_bm25
from medley.synthesize.perturb import PerturbationSettings, perturb_negatives
from medley.words import search_terms, words

CHINESE = {
    "一型糖尿病需要注射胰岛素吗": "一型糖尿病患者需要终身注射胰岛素。",
    "二型糖尿病先吃什么药": "二型糖尿病患者通常先服用二甲双胍。",
    "哮喘怎么治疗": "哮喘患者使用吸入性糖皮质激素治疗。",
    "正常静息心率是多少": "成年人静息心率为每分钟六十至一百次。",
    "偏头痛吃什么药": "偏头痛患者可以服用曲坦类药物。",
    "高血压饮食注意什么": "高血压患者应当减少食盐摄入。",
}
THAI = {
    "รักษาโรคเบาหวานอย่างไร": "โรคเบาหวานรักษาด้วยอินซูลิน",
    "ปวดหัวกินยาอะไร": "ไมเกรนหรือปวดหัวใช้ยาพาราเซตามอล",
    "โรคหัวใจรักษาอย่างไร": "โรคหัวใจรักษาด้วยยา",
}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Type-2 Diabetes, naïve β-cells!", ["type", "diabetes", "naïve", "cells"]),
        ("दिल दाल", ["दिल", "दाल"]),
        ("二型糖尿病", ["二型", "型糖", "糖尿", "尿病"]),
        ("肝 and 肝炎", ["肝", "and", "肝炎"]),
        ("ｲﾝｽﾘﾝ", ["イン", "ンス", "スリ", "リン"]),
        ("당뇨병은", ["당뇨", "뇨병", "병은"]),
        ("ผู้ป่วย", ["ผู้ป่", "ป่ว", "วย"]),
        ("CO₂ ﬁbre Lipitor™ thera\u00adpy", ["co2", "fibre", "lipitor", "therapy"]),
        ("... _ !", []),
    ],
)
def test_what_texts_are_found_by(text: str, found: list[str]) -> None:
    assert search_terms(text) == [unicodedata.normalize("NFC", term) for term in found]


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_is_cut_as_bm25s_cuts_it_but_for_underscores(text: str) -> None:
    assert search_terms(text) == re.findall(r"\b\w\w+\b", text.replace("_", " ").lower())


@given(st.text())
def test_forms_of_a_text_are_one_text(text: str) -> None:
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    assert {tuple(words(form)) for form in forms} == {tuple(words(text))}
    assert {tuple(search_terms(form)) for form in forms} == {tuple(search_terms(text))}
    assert words(" ".join(words(text))) == words(text)


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_leaks_count_the_same_words(texts: list[str]) -> None:
    hashed = hash_texts(texts)
    assert hashed.sizes.tolist() == [len(words(text)) for text in texts]
    same = [[normal_form(a) == normal_form(b) for b in texts] for a in texts]
    parts = [
        hashed.words[start:stop].tolist() for start, stop in zip(hashed.first, hashed.first[1:], strict=False)
    ]
    assert [[a == b for b in parts] for a in parts] == same


def test_a_vowel_sign_makes_another_word_and_a_unicode_form_does_not() -> None:
    heart, lentils = "दिल के लिए क्या अच्छा है", "दाल के लिए क्या अच्छा है"
    collection = in_memory(
        "hi", "test", [Passage("d", "ओट्स दिल को मज़बूत रखते हैं")], {"q": heart}, {"q": {"d": 1}}
    )
    assert find_leaks([TrainingPair(lentils, "हींग")], collection) == []
    (leak,) = find_leaks([TrainingPair(unicodedata.normalize("NFD", heart), "हींग")], collection)
    assert (leak.field, leak.kind) == ("query", "exact")
    index = Bm25Index(
        [Passage("nfd", unicodedata.normalize("NFD", "Ménière café")), Passage("other", "Menier")]
    )
    assert [found for found, _ in index.search(["ménière"], 5)[0]] == ["nfd"]


@pytest.mark.parametrize("texts", [CHINESE, THAI], ids=["chinese", "thai"])
def test_scripts_without_spaces_are_searched_and_mined(texts: dict[str, str]) -> None:
    passages = [Passage(f"d{i}", text) for i, text in enumerate(texts.values())]
    queries = {f"q{i}": text for i, text in enumerate(texts)}
    collection = in_memory("c", "test", passages, queries, {f"q{i}": {f"d{i}": 1} for i in range(len(texts))})
    rankings = rank_with_bm25(collection, 5)
    assert [rankings[f"q{i}"][0][0] for i in range(len(texts))] == [f"d{i}" for i in range(len(texts))]
    pairs = [TrainingPair(query, positive) for query, positive in texts.items()]
    mined = mine_negatives(pairs, passages, MiningSettings(), seed=0)
    assert mined.counts["negatives"] > 0 and mined.counts["pairs_matching_nothing"] == 0
    made = perturb_negatives(pairs, passages, PerturbationSettings(), seed=0)
    assert made.counts["rows"] == len(pairs)


def test_a_near_copy_in_chinese_is_no_negative_and_leaks() -> None:
    answer = "一型糖尿病患者需要终身注射胰岛素，剂量由医生根据血糖水平逐步调整。"
    near = answer.replace("逐步", "逐渐")
    passages = [Passage("near", answer + "请"), Passage("other", CHINESE["二型糖尿病先吃什么药"])]
    pairs = [TrainingPair("一型糖尿病需要注射胰岛素吗", answer)]
    mined = mine_negatives(pairs, passages, MiningSettings(margin=None, per_query=3), seed=0)
    assert mined.pairs[0].negatives == (passages[1].text,)
    collection = in_memory("zh", "test", [Passage("d", near + "请")], {"q": "哮喘"}, {"q": {"d": 1}})
    assert [leak.kind for leak in find_leaks([TrainingPair("别的", near)], collection)] == ["near"]


def test_what_matches_nothing_is_counted_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    passages = [Passage("a", "insulin"), Passage("b", "steroids")]
    collection = in_memory(
        "c", "test", passages, {"q": "哮喘", "r": "insulin"}, {"q": {"b": 1}, "r": {"a": 1}}
    )
    rank_with_bm25(collection, 5)
    assert "BM25 finds nothing for 1 of 2 queries of c:test" in capsys.readouterr().err
    mined = mine_negatives([TrainingPair("哮喘", "steroids")], passages, MiningSettings(), seed=0)
    assert mined.counts["pairs_matching_nothing"] == 1
    assert "finds nothing for 1 of 1 pairs" in capsys.readouterr().err


def test_rewriting_takes_no_word_apart_in_scripts_with_marks() -> None:
    texts = (
        "इंसुलिन मधुमेह का इलाज है। रोगी को रोज़ इंजेक्शन चाहिए।",
        "पेरासिटामोल बुखार का इलाज है। रोगी को आराम चाहिए।",
    )
    pairs = [TrainingPair("मधुमेह का इलाज क्या है", texts[0]), TrainingPair("बुखार का इलाज क्या है", texts[1])]
    made = perturb_negatives(
        pairs, [Passage(str(i), text) for i, text in enumerate(texts)], PerturbationSettings(), seed=1
    )
    known = {word for text in texts for word in words(text)}
    assert {word for pair in made.pairs for text in pair.negatives for word in words(text)} <= known
