from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kb import terms
from kb.endpoint import Endpoint, Namespaces, Properties, is_loopback
from kb.errors import BadTermError
from kb.terms import Term

NAMES = Namespaces()


@given(st.text())
def test_a_text_is_an_iri_or_refused_and_never_leaves_its_brackets(text):
    try:
        term = terms.iri(text)
    except BadTermError:
        return
    assert term[0] == "<"
    assert term[-1] == ">"
    assert not set(term[1:-1]) & set('<>"{}|^`\\ \n\t\r')


@given(st.text())
def test_only_entity_ids_become_entities(text):
    try:
        term = terms.entities(NAMES.wd, [text])
    except BadTermError:
        return
    local = term.removeprefix("<" + NAMES.wd).removesuffix(">")
    assert local.isascii()
    assert local.isalnum()


@given(st.text())
def test_a_literal_ends_where_it_should(text):
    try:
        term = terms.literal(text)
    except BadTermError:
        assert "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text)
        return
    inner = term[1:-1]
    assert term[0] == term[-1] == '"'
    unescaped = inner.replace("\\\\", "").replace('\\"', "")
    assert '"' not in unescaped
    assert "\n" not in inner
    assert "\r" not in inner


@given(st.lists(st.text(max_size=8), max_size=4))
def test_only_language_codes_enter_a_condition(chain):
    try:
        term = terms.languages(chain)
    except BadTermError:
        return
    assert chain
    for entry in chain:
        code = entry.removesuffix("-*")
        assert f'"{code}' in term
        assert code.replace("-", "").isalnum()


def test_dates_and_numbers():
    assert terms.date(datetime(2026, 9, 1, 2, 3, 4, 5, tzinfo=UTC)).startswith('"2026-09-01T02:03:04Z"^^<')
    with pytest.raises(BadTermError):
        terms.date(datetime(2026, 9, 1))  # noqa: DTZ001
    assert terms.number(7) == "7"
    for wrong in (-1, True):
        with pytest.raises(BadTermError):
            terms.number(wrong)


def test_a_query_takes_checked_terms_for_exactly_its_places():
    good = {"items": terms.entities(NAMES.wd, ["Q1"]), "languages": terms.languages(["en"])}
    assert "VALUES ?item { <http://www.wikidata.org/entity/Q1> }" in terms.query("labels", NAMES, **good)
    for wrong in (
        {"items": good["items"]},
        good | {"more": Term("")},
        good | {"items": "<http://www.wikidata.org/entity/Q1>"},
    ):
        with pytest.raises(BadTermError):
            terms.query("labels", NAMES, **wrong)


def test_what_is_put_in_is_not_looked_at_again():
    text = terms.query(
        "discover_munged",
        NAMES,
        since=terms.date(datetime(2026, 1, 1, tzinfo=UTC)),
        until=terms.date(datetime(2026, 1, 2, tzinfo=UTC)),
        claims=terms.entities(NAMES.p, ["P6"]),
        items=terms.literal(f"{NAMES.wd}Q"),
        after=terms.literal("$limit \\1 \\g<0>"),
        scope=Term(""),
        limit=terms.number(5),
    )
    assert '"$limit \\\\1 \\\\g<0>"' in text


def test_prefixes_follow_the_wikibase():
    names = Namespaces.of("https://wiki.museum.net/")
    text = terms.query("lag_munged", names, site=terms.iri(names.site))
    assert "<https://wiki.museum.net> schema:dateModified" in text
    text = terms.query(
        "labels", names, items=terms.entities(names.wd, ["Q1"]), languages=terms.languages(["en"])
    )
    assert "PREFIX wd: <https://wiki.museum.net/entity/>" in text
    assert "wikidata" not in text


@pytest.mark.parametrize("base", ["https://x> ", "javascript", 'http://a"b', "http://a b", "http://a}b"])
def test_a_namespace_that_is_no_iri_is_refused(base):
    with pytest.raises(BadTermError):
        Namespaces.of(base)


@pytest.mark.parametrize("value", ["P0", "Q31", "P31 ", "p31", "P31> ."])
def test_a_property_that_is_none_is_refused(value):
    with pytest.raises(BadTermError):
        Properties(start=value)


@pytest.mark.parametrize(
    "changed",
    [
        {"url": "ftp://x/"},
        {"url": "http:///sparql"},
        {"url": "http://x/\r\nHost: y"},
        {"user_agent": "a\r\nX-Evil: 1"},
        {"user_agent": "café"},
        {"timeout_s": 0},
        {"parallel": 0},
        {"probe_batch": 0},
        {"page_rows": 0},
        {"max_reply_bytes": 0},
    ],
)
def test_an_endpoint_that_cannot_be_is_refused(changed):
    with pytest.raises(BadTermError):
        Endpoint(**({"url": "http://127.0.0.1:7878/query"} | changed))


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:1/", True),
        ("http://localhost/", True),
        ("http://[::1]:1/", True),
        ("http://127.0.0.1.evil.net/", False),
        ("https://query.wikidata.org/sparql", False),
    ],
)
def test_loopback_is_this_machine_alone(url, local):
    assert is_loopback(url) is local
