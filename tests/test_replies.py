"""What becomes of bad replies, by name, and whether good ones are left alone, in several languages."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medley.collections import BUNDLED, load_collection
from medley.llm import Reply
from medley.synthesize.language import _FUNCTION_WORDS, language_of, other_language, script_of
from medley.synthesize.replies import check_reply, clean, is_copy

POSITIVE = (
    "Metformin lowers glucose production in the liver and is usually the first tablet in type 2 diabetes."
)
GOOD = "Metformin tablets are swallowed with food so that the stomach is less upset in the first weeks."
TEXTS = {
    "en": "Aspirin is taken with water. It should not be given to children because of a rare illness of the liver.",
    "de": "Aspirin wird mit Wasser eingenommen. Es soll Kindern nicht gegeben werden, weil eine seltene Krankheit der Leber droht.",
    "fr": "L'aspirine se prend avec de l'eau. Elle ne doit pas être donnée aux enfants à cause d'une maladie rare du foie.",
    "es": "La aspirina se toma con agua. No se debe dar a los niños por una enfermedad rara del hígado que puede ser grave.",
    "it": "L'aspirina si prende con acqua. Non va data ai bambini per una malattia rara del fegato che può essere grave.",
    "pt": "A aspirina toma-se com água. Não deve ser dada a crianças por causa de uma doença rara do fígado que pode ser grave.",
    "nl": "Aspirine wordt met water ingenomen. Het mag niet aan kinderen worden gegeven vanwege een zeldzame ziekte van de lever.",
    "sv": "Aspirin tas med vatten. Det ska inte ges till barn för att en sällsynt sjukdom i levern kan uppstå och det är farligt.",
    "pl": "Aspirynę przyjmuje się z wodą. Nie należy jej podawać dzieciom, ponieważ jest to rzadka choroba, która może być groźna dla wątroby.",
    "tr": "Aspirin su ile alınır. Çocuklara verilmez, çünkü karaciğer için tehlikeli olan ve çok ender bir hastalık gibi sonra ortaya çıkar.",
    "ru": "Аспирин запивают водой. Его не дают детям, так как это может вызвать редкую болезнь печени, и она опасна для жизни.",
    "uk": "Аспірин запивають водою. Його не дають дітям, бо це може бути небезпечно для печінки, та є рідкісна хвороба.",
    "el": "Η ασπιρίνη λαμβάνεται με νερό. Δεν πρέπει να δίνεται σε παιδιά λόγω μιας σπάνιας νόσου του ήπατος.",
    "ar": "يؤخذ الأسبرين مع الماء. لا ينبغي إعطاؤه للأطفال بسبب مرض نادر في الكبد.",
    "zh": "阿司匹林用水送服。不应给儿童服用,因为可能引起一种罕见的肝脏疾病。",
    "ja": "アスピリンは水と一緒に服用します。まれな肝臓の病気のため、子供には与えないでください。",
    "ko": "아스피린은 물과 함께 복용합니다. 드문 간 질환 때문에 어린이에게 주어서는 안 됩니다.",
    "th": "แอสไพรินรับประทานพร้อมน้ำ ไม่ควรให้เด็กเพราะอาจเกิดโรคตับที่พบได้ยาก",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason", "problem"),
    [
        ("I'm sorry, but I can't help with that request.", "stop", "refusal"),
        ("As an AI language model, I cannot write medical advice.", "stop", "refusal"),
        ("Es tut mir leid, aber dabei kann ich nicht helfen.", "stop", "refusal"),
        ("Lo siento, no puedo ayudar con eso.", "stop", "refusal"),
        ("抱歉,我无法提供医疗建议。", "stop", "refusal"),
        (GOOD, "content_filter", "refusal"),
        (GOOD, "length", "truncated"),
        ("", "budget", "over_budget"),
        ("", "rejected", "rejected"),
        ("  \n…", "stop", "empty"),
        ("<think>let me see", "stop", "empty"),
        (POSITIVE.upper().replace(",", ""), "stop", "copy"),
        (POSITIVE + " It is cheap.", "stop", "copy"),
        ("Here is a passage about metformin that is close to the topic. " + GOOD, "stop", "commentary"),
        (GOOD + " However, as an AI, I would ask a doctor.", "stop", "commentary"),
        (GOOD + "\n\nNote: it shares terms with the positive.", "stop", "commentary"),
        (TEXTS["de"], "stop", "wrong_language"),
        (TEXTS["zh"], "stop", "wrong_language"),
        ("Metformin is a drug.", "stop", "too_short"),
    ],
)
def test_a_bad_reply_has_a_name(text: str, reason: str, problem: str) -> None:
    assert check_reply(Reply(text, reason), [POSITIVE]).problem == problem
    assert check_reply(Reply(text, reason), [POSITIVE]).text == ""


@pytest.mark.parametrize(
    "wrapped",
    [
        "Sure! " + GOOD,
        "Sure, here is a hard negative passage:\n\n" + GOOD,
        "Certainly!\n" + GOOD,
        f"<think>They want\n\na passage.</think>\n{GOOD}",
        f"They want a passage.</think>{GOOD}",
        f"```text\n{GOOD}\n```",
        f'**Passage:** "{GOOD}"',
    ],
)
def test_what_is_wrapped_round_a_text_goes(wrapped: str) -> None:
    assert clean(wrapped) == GOOD
    assert check_reply(Reply(wrapped), [POSITIVE]).text == GOOD


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_in_the_language_of_the_positive_passes_and_in_any_other_does_not(language: str) -> None:
    for other in TEXTS:
        assert other_language(TEXTS[language], TEXTS[other]) == (other != language), (language, other)
        if other != language:
            assert check_reply(Reply(TEXTS[language]), [TEXTS[other]]).problem == "wrong_language"
    assert check_reply(Reply(TEXTS[language]), []).problem == ""


def test_languages_and_scripts_are_told() -> None:
    told = {language: language_of(text) for language, text in TEXTS.items() if language in _FUNCTION_WORDS}
    assert told == {language: language for language in told} and len(told) >= 12
    assert script_of(TEXTS["ja"]) == "HIRAGANA" and script_of(TEXTS["zh"]) == "CJK"
    assert script_of(TEXTS["el"]) == "GREEK" and script_of("12 mg") == ""


@pytest.mark.parametrize(
    "short",
    [
        "metformin dose elderly", "what is the first drug for type 2 diabetes", "COVID-19", "do statins cause dementia",
        "patients die in hospital: why", "de novo mutation", "in vitro", "la grippe", "Crohn disease vs colitis ulcerosa",
        "α-synuclein", "IL-6 per os or i.v.", "E. coli", "12 mg/kg", "Guillain-Barré", "Sjögren syndrome treatment",
        "Do I need to see a doctor?", "This is called a de novo mutation", "Pagon RA, Adam MP, Bean LJH, S. A. V. Ko",
    ],
)  # fmt: skip
def test_short_english_queries_raise_no_false_alarm(short: str) -> None:
    assert not other_language(short, POSITIVE)
    assert not other_language(POSITIVE, short)


def alarms(texts: list[str], seed: int, pairs: int) -> int:
    chosen = random.Random(seed)
    return sum(other_language(*chosen.sample(texts, 2)) for _ in range(pairs))


def test_no_false_alarm_in_an_english_collection() -> None:
    collection = load_collection(str(BUNDLED / "demo" / "general"))
    texts = [passage.full_text for passage in collection.corpus] + list(collection.queries.values())
    sentences = [sentence for text in texts for sentence in text.split(". ")]
    assert len(sentences) > 500
    assert alarms(texts + sentences, seed=0, pairs=2000) == 0


@pytest.mark.data
@pytest.mark.skipif("MEDLEY_DATA" not in os.environ, reason="MEDLEY_DATA names no folder of collections")
def test_hardly_a_false_alarm_in_real_collections() -> None:
    root = Path(os.environ["MEDLEY_DATA"])
    folders = [path.parent for path in (root / "collections").glob("*/corpus.jsonl*")]
    folders = [folder for folder in folders if folder.name != "cranfield"]  # holds empty passages
    assert folders
    for folder in folders:
        corpus = load_collection(str(folder)).corpus
        texts = [passage.full_text for passage in itertools.islice(corpus, 2000)]
        sentences = [sentence for text in texts for sentence in text.split(". ")]
        assert alarms(texts + sentences, seed=1, pairs=3000) <= 3, folder  # .1 %


@settings(deadline=None)
@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_can_be_judged(text: str, other: str) -> None:
    checked = check_reply(Reply(text), [other])
    assert bool(checked.text) != bool(checked.problem)
    assert not other_language(text, text)
    assert is_copy(text, text)
