"""Whether two texts are in different languages, by their scripts and by their most frequent function words.

No model and no table of n-grams: a generated passage has to be in the language of the positive, and what goes wrong
in practice is a reply in English, or in the model's own favourite language. Undecided (a short text, a list of
names, a language that is not in the table) never counts as different.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

LEAST_HITS = 3
"""A language needs so many of its function words in a text, different ones, two of them longer than a letter."""
LEAST_SHARE = 0.12
"""And so large a share of the text's words."""
LEAD = 1.5
"""And so many times the hits of the next best language."""
SCRIPT_SHARE = 0.6
"""A text is written in the script of this share of its letters."""

_WORDS = {
    "en": "the of and to in is that for it as with was on are by be this from at or an which not have has were can a i "
    "do does you your my we they what how why when if so there their more these than also should will would but about",
    "de": "der die das und ist von den dem des ein eine einer einem eines mit auf für nicht sich auch werden wird bei "
    "sind im zu zur zum oder durch als nach wie kann",
    "fr": "le la les des et est du un une dans que qui pour par sur au aux avec sont ce cette ne pas plus ou se il "
    "elle être peut ont",
    "es": "el la los las de del y es en que un una por con para se su al lo como más son no o pero puede está este "
    "esta",
    "it": "il la lo gli le di del della dei delle e è in che un una per con si da sono non al alla nel come più o "
    "anche può essere",
    "pt": "o a os as de do da dos das e é em que um uma por com para se não no na ao como mais são ou pode ser também",
    "nl": "de het een en van is dat in op te met voor zijn niet die er aan door bij ook als worden wordt naar of kan",
    "sv": "och att det är en ett som på av för med den inte till kan om har de vid eller från sig hos",
    "da": "og at det er en et som på af for med den ikke til kan om har de ved eller fra sig hos der blev også",
    "pl": "w i na z do się nie jest to że od oraz przez dla jak lub po są ma może przy tym które który która",
    "cs": "a v na se je že s z do pro o k jako jsou nebo od při po který která které také může být není",
    "ro": "de și în la a cu pe este un o care din pentru nu se mai sunt prin sau după fi poate ca ce al ale",
    "tr": "ve bir bu için ile da de olarak olan çok daha ya veya gibi en ne kadar sonra ise hastalarda değil",
    "fi": "ja on ei että se hän ovat oli voi tai kun myös joka mutta niin kuin sekä jos sen ole olla",
    "hu": "a az és hogy nem is egy van meg ez csak de mint vagy azt el már kell lehet volt amely után",
    "id": "yang dan di dari untuk pada dengan ini itu adalah dalam tidak ke atau oleh dapat juga akan sebagai",
    "vi": "và của là có được trong cho các một không người với để này khi từ đến thể những bị",
    "ru": "и в не на что с по как это для из к от при или его но у также быть может за до так же они",
    "uk": "і в не на що з у як це для до та від при або його але є також бути може за про так їх",
    "bg": "и в на не се да за от с е като по са при или че към до това може но също",
}  # fmt: skip
_FUNCTION_WORDS = {language: frozenset(words.split()) for language, words in _WORDS.items()}


def other_language(text: str, reference: str) -> bool:
    """Whether a text is written in another script or another language than the reference, as far as can be told."""
    scripts = script_of(text), script_of(reference)
    if all(scripts) and scripts[0] != scripts[1]:
        return True
    languages = language_of(text), language_of(reference)
    return all(languages) and languages[0] != languages[1]


def script_of(text: str) -> str:
    """The script of most letters (LATIN, CYRILLIC, CJK, ...); "" where there are few letters or none prevails.

    Japanese mixes three scripts and counts as one: HIRAGANA.
    """
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    total = counts.total()
    if total < 8:
        return ""
    kana = counts["HIRAGANA"] + counts["KATAKANA"]
    if kana >= 0.05 * total and kana + counts["CJK"] >= SCRIPT_SHARE * total:
        return "HIRAGANA"
    script, count = counts.most_common(1)[0]
    return script if count >= SCRIPT_SHARE * total else ""


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0].split("-")[0]


def language_of(text: str) -> str:
    """The language of a text in the table above (ISO 639-1), or "" where its function words do not decide."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    hits = {
        language: [word for word in words if word in function_words]
        for language, function_words in _FUNCTION_WORDS.items()
    }
    best, second = sorted(hits, key=lambda language: -len(hits[language]))[:2]
    found = hits[best]
    different = set(found)
    if len(different) < LEAST_HITS or sum(len(word) > 1 for word in different) < 2:
        return ""
    if len(found) < LEAST_SHARE * len(words):
        return ""
    return best if len(found) >= LEAD * len(hits[second]) else ""
