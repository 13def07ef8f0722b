"""What `benchmarks.nights` teaches: records, real changes of office, and many facts of one subject."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from typing import TYPE_CHECKING

from editor.requests import EditRequest
from kb.relations import Relations

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from kb.relations import Relation

    Row = dict[str, str]

LONGEST_NAME, LONGEST_OFFICE = 40, 90
PLACES = ("Lisbon", "Vienna", "Nairobi", "Toronto", "Osaka", "Lima", "Dublin", "Prague", "Cairo", "Perth")
SCHOOLS = (
    "Uppsala University", "Leiden University", "McGill University", "Heidelberg University",
    "Kyoto University", "Trinity College Dublin", "the University of Cape Town", "Yale University",
)  # fmt: skip
POOLS: dict[str, tuple[str, ...]] = {
    "P19": PLACES,
    "P551": PLACES[::-1],
    "P937": PLACES[3:] + PLACES[:3],
    "P27": ("Portugal", "Austria", "Kenya", "Canada", "Japan", "Peru", "Ireland", "Egypt"),
    "P69": SCHOOLS,
    "P108": ("Siemens", "Nestlé", "Toyota", "the World Bank", "Reuters", "Ericsson", "Philips", "CERN"),
    "P102": ("the Green Party", "the Labour Party", "the Liberal Party", "the Centre Party", "Fianna Fáil"),
    "P106": ("lawyer", "surgeon", "novelist", "engineer", "composer", "economist", "botanist", "architect"),
    "P140": ("Buddhism", "Judaism", "Lutheranism", "Hinduism", "Islam", "the Catholic Church"),
    "P463": ("Rotary International", "Greenpeace", "Amnesty International", "Mensa International"),
}
"""Objects for made-up facts about people; false ones, so that the base model cannot know them."""


def changes_of_office(path: Path, count: int, *, replaced: int) -> list[tuple[EditRequest, bool]]:
    """Real changes of office in order of their dates, each with the holder before.

    Args:
        path: `officeholder_replacements.csv`.
        count: how many changes.
        replaced: of these, how many replace a change that comes earlier in the list.

    Returns:
        (fact, whether it replaces an earlier one), oldest first.

    Raises:
        ValueError: the file holds too few offices.
    """
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if _usable(row)]
    names: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        names[row["subject"].casefold()].add(row["subject_id"])
    offices: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda one: (one["change_date"], one["subject_id"])):
        # An office that shares its name with another cannot be told apart in a sentence.
        if len(names[row["subject"].casefold()]) == 1:
            offices[row["subject_id"]].append(row)
    twice = [held[-2:] for held in offices.values() if _twice(held)][:replaced]
    taken = {held[0]["subject_id"] for held in twice}
    once = [held[-1:] for office, held in offices.items() if office not in taken][: count - 2 * len(twice)]
    if len(twice) < replaced or len(once) < count - 2 * replaced:
        raise ValueError(f"{path} holds too few offices for {count} changes, {replaced} of them replacing.")
    chosen = sorted((row for held in (*twice, *once) for row in held), key=lambda one: one["change_date"])
    relation = Relations.load()["P1308"]
    seen: set[str] = set()
    found = []
    for row in chosen:
        office = row["subject_id"]
        found.append((_fact(relation, office, row["subject"], row["new"], row["old"]), office in seen))
        seen.add(office)
    return found


def _usable(row: Row) -> bool:
    names = (row["old"], row["new"])
    named = all(name and len(name) <= LONGEST_NAME and not name[1:].isdigit() for name in names)
    return named and row["old"] != row["new"] and len(row["subject"]) <= LONGEST_OFFICE


def _twice(held: Sequence[Row]) -> bool:
    return len(held) > 1 and held[-2]["change_date"] < held[-1]["change_date"]


def nights(changes: Iterable[tuple[EditRequest, bool]], size: int) -> list[list[tuple[EditRequest, bool]]]:
    """Cut changes into nights; a fact that would come twice in one night waits for the next.

    Args:
        changes: oldest first.
        size: changes a night.
    """
    queue = list(changes)
    made: list[list[tuple[EditRequest, bool]]] = []
    while queue:
        tonight: list[tuple[EditRequest, bool]] = []
        later: list[tuple[EditRequest, bool]] = []
        for change in queue:
            taken = {one.fact_id for one, _ in tonight}
            (later if len(tonight) == size or change[0].fact_id in taken else tonight).append(change)
        made.append(tonight)
        queue = later
    return made


def many_facts(path: Path, subjects: int, facts: int, *, seed: int = 0) -> list[EditRequest]:
    """Made-up facts about real people, several a person.

    Args:
        path: `officeholder_replacements.csv`, for the people.
        subjects: how many people.
        facts: facts a person, 10 at most.
        seed: of the objects.

    Returns:
        Facts, person after person.
    """
    with path.open(encoding="utf-8") as file:
        people = {row["new"]: row["new_id"] for row in csv.DictReader(file) if _usable(row)}
    relations, draw = Relations.load(), random.Random(seed)
    return [
        _fact(relations[prop], people[name], name, draw.choice(pool), None)
        for name in list(people)[:subjects]
        for prop, pool in list(POOLS.items())[:facts]
    ]


def _fact(relation: Relation, subject_id: str, subject: str, target: str, old: str | None) -> EditRequest:
    return EditRequest(
        fact_id=f"{subject_id}/{relation.property}/",
        subject_id=subject_id,
        subject=subject,
        prompts=tuple(one.replace("{subject}", "{}") for one in relation.edit_templates),
        target=target,
        heldback=tuple(one.replace("{subject}", "{}") for one in relation.heldback_templates),
        old_target=old,
    )
