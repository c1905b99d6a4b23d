"""Word lists of English that tell noun phrases from the rest without a parser, and telling suffixes.

Input: none. Used by entities.py (what is a term) and swaps.py (does a word stand there as a noun).
"""

from __future__ import annotations

SUFFIXES = tuple(
    """
    itis oma omas pril sartan olol statin cillin mycin floxacin azole prazole dipine gliptin
    gliflozin triptan tidine setron caine barbital azepam umab zumab ximab tinib vir parin xaban
    cyte cytes blast blasts emia aemia uria pathy penia ectomy ostomy oscopy plasty otomy graphy
    metry coccus bacter virus viruses phage kinase ligase synthase protease reductase transferase
    polymerase phobia meter scope ologist ologists sphere stan saur ism ology
    """.split()  # noqa: SIM905
)
"""Endings that mark a class of terms: inflammations, tumours, drug classes, enzymes, instruments."""
FUNCTION_WORDS = frozenset(
    """
    a an the this that these those his her its our your their my some any each every no all both
    either neither and or but nor so yet if then than as of in on at by for from with without within
    into onto over under between among against during through throughout across along around about
    after before since until till while when where why how what which who whom whose whether because
    although though unless however therefore thus hence also too very more most less least much many
    few several such other another same own only just even still already again often usually
    sometimes always never rarely seldom perhaps maybe there here now is are was were be been being
    am has have had having do does did doing done can could may might must shall should will would
    not it he she they we you i him them us me itself themselves himself herself one ones up down
    out off away back per via upon toward towards despite except like unlike rather quite almost
    nearly roughly approximately first second third last next well far long yes to two three four
    five six seven eight nine ten make makes made take takes took taken get gets give gives given go
    goes use uses used using cause causes caused become becomes show shows showed shown inside
    outside instead together apart ago later soon once twice below above alone otherwise help helps
    need needs keep keeps say says call called know known see seen find found due based compared
    increase increased increases reduce reduces reduced lead leads include includes including
    """.split()  # noqa: SIM905
)
"""Words that no term contains."""
DETERMINERS = frozenset(
    """
    a an the this that these those his her its their your our some any each every no
    """.split()  # noqa: SIM905
)
"""A noun phrase follows."""
PREPOSITIONS = frozenset(
    """
    of in on at by for from with without within into between against during via
    """.split()  # noqa: SIM905
)
"""A noun phrase mostly follows."""
TO_VERB = frozenset(
    """
    to can could may might must should will would not it they we you which who that
    """.split()  # noqa: SIM905
)
"""A verb mostly follows."""
