"""The sample's tables, read into the state of the store on each night.

Ids and revisions that nobody can look up are made from what they stand for: statement GUIDs by name-based
digests, an item's revision from the time of its last edit, at the pace of Wikidata in spring 2026.
"""

from __future__ import annotations

import copy
import hashlib
import re
import tomllib
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

HERE: Final = Path(__file__).parent
PROPERTIES: Final = {
    "P6": "head of government",
    "P26": "spouse",
    "P35": "head of state",
    "P36": "capital",
    "P38": "currency",
    "P54": "member of sports team",
    "P102": "member of political party",
    "P108": "employer",
    "P127": "owned by",
    "P159": "headquarters location",
    "P169": "chief executive officer",
    "P286": "head coach",
    "P488": "chairperson",
    "P1037": "director / manager",
    "P1308": "officeholder",
}
HUMAN: Final = "Q5"
_WRITTEN: Final = re.compile(r"\d{4}(-\d\d(-\d\d)?)?|somevalue|novalue", re.ASCII)
PRECISIONS: Final = {4: 9, 7: 10, 10: 11}  # by the length of what is written

# Revision 2 471 717 825 was made on 13 March 2026 and 2 483 686 550 on 21 April: about 3.5 in a second.
_REVISION_AT: Final = datetime(2026, 3, 13, 19, 35, 8, tzinfo=UTC)
_REVISION: Final = 2_471_717_825
_REVISIONS_PER_S: Final = 3.5
_QUIET_FROM: Final = datetime(2026, 3, 20, tzinfo=UTC)
_QUIET_DAYS: Final = 150  # on night one every item has stood untouched for at least ten days


@dataclass(slots=True)
class Fact:
    """One statement. ``key`` names it over both nights, whatever happens to its parts."""

    subject: str
    relation: str
    value: str
    key: str
    rank: str = "normal"
    start: str | None = None
    end: str | None = None
    at: str | None = None
    refs: int = 1
    true_id: str | None = None

    @property
    def node(self) -> str:
        """The statement id as RDF writes it."""
        return self.true_id or f"{self.subject}-{str(uuid.uuid5(uuid.NAMESPACE_URL, self.key)).upper()}"


@dataclass(slots=True)
class Item:
    """One item: what describes it and when it was last edited."""

    id: str
    labels: dict[str, str]
    classes: list[str]
    edited: datetime

    @property
    def revision(self) -> int:
        """Rises with time; items edited in the same second differ by the item."""
        seconds = (self.edited - _REVISION_AT).total_seconds()
        return _REVISION + int(seconds * _REVISIONS_PER_S)


@dataclass(slots=True)
class State:
    """All that the store says on one night."""

    watermark: datetime
    items: dict[str, Item]
    facts: list[Fact]
    redirects: dict[str, str] = field(default_factory=dict)


class TableError(ValueError):
    """The tables of the sample contradict themselves."""


def read(name: str) -> dict[str, Any]:
    """One of the sample's tables."""
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))


def states() -> tuple[State, State]:
    """Both nights, from the tables."""
    nights = {row["number"]: row["watermark"].astimezone(UTC) for row in read("nights.toml")["night"]}
    facts = read("facts.toml")
    changes = read("changes.toml")["change"]
    known = {item.id: item for item in _items([*read("items.toml").values(), facts["staged"]])}
    late = set(facts["new_on_night_two"])
    first = State(
        watermark=nights[1],
        items={key: item for key, item in known.items() if key not in late},
        facts=[_fact(row) for row in (*facts["open"], *facts["closed"])],
    )
    second = copy.deepcopy(first)
    second.watermark = nights[2]
    second.items |= {key: copy.deepcopy(known[key]) for key in late}
    for change in changes:
        _apply(change, second)
    for state in (first, second):
        check(state)
    return first, second


def _items(tables: Iterable[Mapping[str, Any]]) -> Iterator[Item]:
    for rows in tables:
        for key, row in rows.items():
            labels = {language: text for language, text in row.items() if language != "class"}
            spread = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % (_QUIET_DAYS * 86_400)
            yield Item(key, labels, row.get("class", [HUMAN]), _QUIET_FROM + timedelta(seconds=spread))


def _fact(row: Mapping[str, Any], subject: str | None = None) -> Fact:
    who = row.get("s", subject)
    return Fact(
        subject=who,
        relation=row["p"],
        value=row["o"],
        key=f"factsync-sample/{who}/{row['p']}/{row['o']}/{row.get('start', '')}",
        rank=row.get("rank", "normal"),
        start=row.get("start"),
        end=row.get("end"),
        at=row.get("at"),
        refs=row.get("refs", 1),
        true_id=row.get("id"),
    )


def _apply(change: Mapping[str, Any], state: State) -> None:
    who = change["item"]
    if change.get("deleted"):
        state.facts = [fact for fact in state.facts if fact.subject != who]
        del state.items[who]
        return
    if "merged_into" in change:
        _merge(state, who, change["merged_into"], change["edited"])
        return
    state.items[who].edited = change["edited"]
    for row in change.get("set", ()):
        (fact,) = (
            one for one in state.facts if (one.subject, one.relation, one.value) == (who, row["p"], row["o"])
        )
        fact.value = row.get("to", fact.value)
        for name in ("rank", "start", "end", "at", "refs"):
            setattr(fact, name, row.get(name, getattr(fact, name)))
    state.facts += [_fact(row, who) for row in change.get("add", ())]
    for language, text in change.get("label", {}).items():
        state.items[who].labels.pop(language, None)
        if text:
            state.items[who].labels[language] = text


def _merge(state: State, old: str, new: str, edited: datetime) -> None:
    """As on Wikidata: the statements move and get new ids, the old item only points to the new one."""
    for fact in state.facts:
        if fact.subject == old:
            fact.subject, fact.true_id, fact.key = new, None, f"{fact.key}/merged-into-{new}"
    del state.items[old]
    state.items[new].edited = edited
    state.redirects[old] = new


def check(state: State) -> None:
    """Refuse a state that contradicts itself.

    Raises:
        TableError: An item or property is not described, a date cannot be read, two statements have one id,
            or an item was edited after the watermark.
    """
    for fact in state.facts:
        if fact.subject not in state.items or fact.value not in state.items:
            raise TableError(f"{fact.key} names an item that items.toml does not have.")
        if fact.relation not in PROPERTIES:
            raise TableError(f"{fact.key} is of a property that build.py does not name.")
        for written in (fact.start, fact.end, fact.at):
            if written is not None and not _WRITTEN.fullmatch(written):
                raise TableError(f"{fact.key} has the date {written}; write 2014, 2014-02 or 2014-02-04.")
    if len({fact.node.upper() for fact in state.facts}) != len(state.facts):
        raise TableError("Two statements have one id.")
    if any(item.edited > state.watermark for item in state.items.values()):
        raise TableError("An item was edited after the watermark of its night.")
