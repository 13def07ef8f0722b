"""Types of the flows' parameters: what the interface's forms show, bound and explain.

The form refuses what has the wrong shape; `check_*` refuses what makes no sense, in a sentence.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, WithJsonSchema

from flows.errors import BackfillInputError, SettingsError
from flows.settings import Settings
from kb.relations import Relations

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import date

_ITEM = re.compile(r"Q[1-9]\d*")


def choice(property_id: str, name: str) -> str:
    """A relation as the form lists it: `P6 head of government`."""
    return f"{property_id} {name}"


def property_of(chosen: str) -> str:
    """The property id of a choice; a bare id is one too."""
    return chosen.strip().split(" ")[0].upper()


def relation_schema(relations: Relations) -> dict[str, Any]:
    """JSON schema of a list to choose relations from."""
    choices = [choice(one.property, one.name) for one in relations.values()]
    return {"type": "array", "items": {"type": "string", "enum": choices}, "uniqueItems": True}


def known_relations(settings: Settings) -> Relations:
    """The relations that are described for this home's source; the shipped ones are Wikidata's.

    Raises:
        RelationsError: the relations file does not hold together.
        SettingsError: the source is another Wikibase, and there is no relations file.
    """
    if settings.wikibase and settings.relations_file is None:
        raise SettingsError(
            f"The shipped relations have Wikidata's property ids, not those of {settings.wikibase}: describe "
            "relations with its own in a file and name that in FACTSYNC_RELATIONS_FILE, or unset "
            "FACTSYNC_WIKIBASE."
        )
    return Relations.load(settings.relations_file, base=not settings.wikibase)


def wikidata_relations(settings: Settings) -> Relations:
    """The relations with Wikidata's ids, in this home's words, whatever source it syncs.

    Raises:
        RelationsError: the relations file does not hold together.
    """
    return Relations.load(None if settings.wikibase else settings.relations_file)


def synced_relations(settings: Settings) -> Relations:
    """The relations that this home syncs.

    Raises:
        RelationsError: the relations file does not hold together, or a selected relation is not described.
        SettingsError: the source is another Wikibase, and there is no relations file.
    """
    known = known_relations(settings)
    return known.only(tuple(settings.relations)) if settings.relations else known


class _OfTheHome:
    """The form's choices stand when the deployment is made: the relations of the home that makes it."""

    def __get_pydantic_json_schema__(self, *_: object) -> dict[str, Any]:
        return relation_schema(synced_relations(Settings.read()))


RelationList = Annotated[list[str], _OfTheHome()]
SubjectList = Annotated[
    list[str], WithJsonSchema({"type": "array", "items": {"type": "string", "pattern": "^Q[1-9][0-9]*$"}})
]
EditLimit = Annotated[int, Field(ge=1, le=100_000)]
BatchSize = Annotated[int, Field(ge=1, le=5_000)]
Minutes = Annotated[int, Field(ge=1, le=1_440)]
CheckpointKey = Annotated[str, Field(pattern="^[0-9a-f]{0,64}$")]
EarlierCheckpoint = Annotated[str, Field(pattern="^(base|[0-9a-f]{0,64})$")]


def check_relations(chosen: Iterable[str], synced: Relations) -> tuple[str, ...]:
    """The property ids of a choice, each once; all synced ones if none was chosen.

    Raises:
        BackfillInputError: one of them is not synced here.
    """
    wanted = tuple(dict.fromkeys(property_of(one) for one in chosen if one.strip()))
    for one in wanted:
        if one not in synced:
            raise BackfillInputError(
                f"{one} is not among the relations synced here, so no night would keep it up to date. "
                "One that does not ship is described in the file of FACTSYNC_RELATIONS_FILE; where "
                "FACTSYNC_RELATIONS is set, that must name it too."
            )
    return wanted or tuple(synced)


def check_subjects(given: Sequence[str]) -> tuple[str, ...]:
    """Item ids, each once.

    Raises:
        BackfillInputError: one of them is none.
    """
    ids = tuple(dict.fromkeys(one.strip().upper() for one in given if one.strip()))
    wrong = next((one for one in ids if not _ITEM.fullmatch(one)), None)
    if wrong is not None:
        raise BackfillInputError(f"{wrong!r} is no Wikidata item: write ids such as Q183.")
    return ids


def check_window(
    since: date | None, until: date | None, today: date
) -> tuple[datetime | None, datetime | None]:
    """A window of whole days, in UTC, as moments: from where `since` begins to where `until` begins.

    Raises:
        BackfillInputError: it ends before it begins, or begins in the future.
    """
    if since is not None and until is not None and until <= since:
        raise BackfillInputError(f"The window ends on {until}, not after its begin on {since}.")
    if since is not None and since > today:
        raise BackfillInputError(f"The window begins on {since}, which is in the future.")
    return _midnight(since), _midnight(until)


def _midnight(day: date | None) -> datetime | None:
    return None if day is None else datetime.combine(day, time(), UTC)
