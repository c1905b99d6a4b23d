"""Addresses and keys: what is refused, what is shown, and what is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medley.errors import EndpointError, RecipeError
from medley.evaluate.endpoint import server_of
from medley.llm import LlmSettings
from medley.llm.addresses import TRACE, check_address, is_loopback, tell_plain, without
from medley.recipe import Recipe, parse_recipe

KEY = "sk-topsecret+/=0123456789"


@pytest.mark.parametrize(
    "address",
    [
        "http://me:topsecret@host/v1",
        "http://topsecret@host/v1",
        "https://host/v1?api-key=topsecret",
        "https://host/v1?x=1&access_token=topsecret",
        "https://host/v1?Authorization=topsecret",
        "host/topsecret",
        "ftp://host/topsecret",
        "http://host:topsecret/v1",
        "http://[topsecret/v1",
        "http://host/top secret\r\nX: topsecret",
    ],
)
def test_an_address_with_a_secret_and_none_are_refused_without_being_repeated(address: str) -> None:
    with pytest.raises(ValueError, match=r"`x` (holds a password or key|must be an address)") as caught:
        check_address(address, "x")
    assert "topsecret" not in str(caught.value)
    with pytest.raises(ValueError, match="base_url"):
        LlmSettings(base_url=address, model="m")
    with pytest.raises(EndpointError, match="URL#MODEL") as told:
        server_of(f"{address}#m")
    assert "topsecret" not in str(told.value)


def recipe_with(evaluate: dict[str, object]) -> Recipe:
    return parse_recipe(
        {
            "name": "x", "base": "tiny", "sources": {"a": {"collection": "demo/medicine"}},
            "experts": {"a": {"sources": ["a"]}}, "merge": {"dev": ["demo/medicine:dev"]},
            "evaluate": {"t": ["demo/medicine:test"], **evaluate},
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    "address", ["http://me:topsecret@host/v1#m+bm25", "https://h/v1?api_key=topsecret#m"]
)
def test_a_recipes_systems_are_held_to_the_same(address: str) -> None:
    with pytest.raises(RecipeError, match=r"systems\.theirs: .*api_key_env") as caught:
        recipe_with({"systems": {"theirs": address}})
    assert "topsecret" not in str(caught.value)
    with pytest.raises(RecipeError, match=r"systems\.theirs: .*names no model"):
        recipe_with({"systems": {"theirs": "http://h/v1"}})
    with pytest.raises(RecipeError, match=r"servers\.other: no system of that name"):
        recipe_with({"systems": {"theirs": "http://h/v1#m"}, "servers": {"other": {"api_key_env": "X"}}})
    with pytest.raises(RecipeError, match="seems to hold a key"):
        recipe_with({"systems": {"t": "http://h/v1#m"}, "servers": {"t": {"extra_body": {"api_key": "sk"}}}})
    assert recipe_with({"systems": {"t": "http://h/v1#m"}, "servers": {"t": {"api_key_env": "X"}}})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"no: Bearer {KEY}.", "no: Bearer ***."),
        ("no: sk-topse*****456789", "no: ********456789".replace("456789", "***")),
        ("no: sk-topsecret%2B%2F%3D0123456789", "no: ***"),
        ("no: sk-to", "no: sk-to"),
        ("", ""),
    ],
)
def test_a_text_is_shown_without_the_key_and_its_parts(text: str, shown: str) -> None:
    assert without(KEY, text) == shown


@given(st.text(alphabet="ab", max_size=30), st.text(alphabet="abc", max_size=60))
def test_no_part_of_a_key_is_left(key: str, text: str) -> None:
    shown = without(key, text)
    assert not any(key[at : at + TRACE] in shown for at in range(len(key) - TRACE + 1))
    assert without("", text) == text


@pytest.mark.parametrize(
    ("host", "here"),
    [("localhost", True), ("a.localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("10.0.0.1", False),
     ("localhost.example", False), ("127.0.0.1.example", False)],
)  # fmt: skip
def test_loopback_is_this_machine(host: str, here: bool) -> None:
    assert is_loopback(host) == here


def test_plain_http_to_another_machine_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    tell_plain.cache_clear()
    for url in (
        "http://10.0.0.1/v1",
        "http://10.0.0.1/v1",
        "https://h/v1",
        "http://localhost/v1",
        "http://[::1]:8/v1",
    ):
        tell_plain(url, with_key=True)
    assert capfd.readouterr().err == (
        "http://10.0.0.1: the texts and the key go there unencrypted; use https where others can read along.\n"
    )
