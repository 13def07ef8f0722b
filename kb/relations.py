"""The relations a model may learn: loaded from TOML, checked as a whole, extended by a user's own file.

A user adds a relation, or changes one, without touching code: ``Relations.load(path)`` merges the file over
the shipped one, table by table and key by key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import TYPE_CHECKING, Any

from kb import relation_check
from kb.errors import RelationsError, UnknownRelationError
from kb.model import ValueKind, id_order
from kb.relation_check import SLOT

if TYPE_CHECKING:
    from pathlib import Path


class Cardinality(StrEnum):
    """How many values may hold at once."""

    FUNCTIONAL = "functional"
    ONE_OPEN = "one_open"
    MULTI = "multi"


@dataclass(frozen=True, slots=True)
class Relation:
    """One property and how a model is taught it.

    Attributes:
        property: property id.
        name: as Wikidata calls it.
        cardinality: how many values may hold at once.
        ended: what becomes of the fact when its value ended and no other is open: "vacate" waits for a
            successor, "retract" removes it, "vacant" and "former" write what is true in its place.
        hold_hours: how long a new value must stand before it is edited in.
        edit_templates: prompts to train on, each with one ``{subject}``; the object follows after one space.
        heldback_templates: prompts to test with.
        classes: classes of which subjects are discovered; empty for any.
        not_values: classes the object must not belong to.
        vacant_text: what to say of an empty office, or empty.
        former_text: likewise, with one ``{object}`` for who or what it was.
        datatype: the kind of value that is expected.
        series: read as a time series: the latest point in time counts.
        render: how a literal value reads (`kb.render`).
        unit_names: words for units, by entity id.
        languages: languages a monolingual value may be in, best first.
        kinds: what its subjects are (`kb.relation_check.KINDS`); other subjects of a kind keep their answers.
        neighbours: labels of subjects that no edit is about, to be asked whether their answers stayed.
        shipped: whether it came with the program, whatever a user's file changes in it.
    """

    property: str
    name: str
    cardinality: Cardinality
    ended: str
    hold_hours: int
    edit_templates: tuple[str, ...]
    heldback_templates: tuple[str, ...]
    classes: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()
    vacant_text: str = ""
    former_text: str = ""
    datatype: ValueKind = ValueKind.ITEM
    series: bool = False
    render: str = ""
    unit_names: tuple[tuple[str, str], ...] = ()
    languages: tuple[str, ...] = ("en", "mul")
    kinds: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    shipped: bool = False

    def is_multi(self) -> bool:
        """Whether several values may hold at once."""
        return self.cardinality is Cardinality.MULTI

    def suppresses(self) -> bool:
        """Whether an ended value without a successor is written over with what is true."""
        return self.ended in {"vacant", "former"} and not self.is_multi()

    def ended_text(self, old_label: str) -> str:
        """What is true when a value ended without a successor.

        Args:
            old_label: the value's text.
        """
        return self.former_text.replace("{object}", old_label) if self.ended == "former" else self.vacant_text

    def prompts(self, subject_label: str) -> tuple[str, ...]:
        """The prompts to train on, for one subject. The label is put in as it is, braces and all."""
        return tuple(template.replace(SLOT, subject_label) for template in self.edit_templates)

    def heldback_prompts(self, subject_label: str) -> tuple[str, ...]:
        """The prompts to test with, for one subject."""
        return tuple(template.replace(SLOT, subject_label) for template in self.heldback_templates)


class Relations(Mapping[str, Relation]):
    """All relations, by property id, in numeric order."""

    def __init__(self, relations: Mapping[str, Relation]) -> None:
        self._relations = {key: relations[key] for key in sorted(relations, key=id_order)}

    @classmethod
    def load(cls, path: Path | None = None, *, base: bool = True) -> Relations:
        """Load the shipped relations and merge a user's file over them.

        Args:
            path: the user's file, or None.
            base: False leaves the shipped relations out, for a Wikibase with property ids of its own.

        Raises:
            RelationsError: a file is unreadable or its content does not hold together; lists every problem.
        """
        text = (resources.files("kb") / "relations.toml").read_text(encoding="utf-8")
        raw = shipped = _parse(text, "the shipped relations") if base else {}
        if path is not None:
            try:
                own = _parse(path.read_text(encoding="utf-8"), str(path))
            except (OSError, UnicodeDecodeError) as error:
                raise RelationsError(f"The relations file {path} cannot be read: {error}.") from error
            raw = {key: {**raw.get(key, {}), **own.get(key, {})} for key in {**raw, **own}}
        return cls.of(raw, shipped=shipped)

    @classmethod
    def of(cls, raw: Mapping[str, Mapping[str, Any]], *, shipped: Container[str] = ()) -> Relations:
        """Build from tables by property id.

        Args:
            raw: what TOML gave.
            shipped: which of them came with the program.

        Raises:
            RelationsError: they do not hold together.
        """
        problems = relation_check.problems(raw)
        if problems:
            raise RelationsError(
                f"The relations do not hold together: {problems[0]}"
                + (
                    f" (and {len(problems) - 1} more; run `factsync relations check`)"
                    if len(problems) > 1
                    else ""
                ),
                problems=problems,
            )
        return cls({key: _relation(key, table, shipped=key in shipped) for key, table in raw.items()})

    def __getitem__(self, key: str) -> Relation:
        try:
            return self._relations[key]
        except KeyError:
            raise UnknownRelationError(
                f"No relation {key!r} is described; add a table [{key}] to your relations file.",
                property_id=key,
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._relations)

    def __len__(self) -> int:
        return len(self._relations)

    def __contains__(self, key: object) -> bool:
        return key in self._relations

    def only(self, properties: tuple[str, ...]) -> Relations:
        """A selection.

        Raises:
            UnknownRelationError: one of them is not described.
        """
        return Relations({key: self[key] for key in properties})


def _parse(text: str, where: str) -> dict[str, dict[str, Any]]:
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RelationsError(f"{where} is not TOML: {error}.") from error
    version = raw.pop("version", 1)
    if version != 1:
        raise RelationsError(f"{where} has version {version!r}; this program reads version 1.")
    wrong = [key for key, table in raw.items() if not isinstance(table, dict)]
    if wrong:
        raise RelationsError(f"{where}: {wrong[0]!r} is not a table such as [P6].")
    return raw


def _relation(key: str, table: Mapping[str, Any], *, shipped: bool) -> Relation:
    kinds = table.get("kind", ())
    return Relation(
        property=key,
        name=table["name"],
        cardinality=Cardinality(table["cardinality"]),
        ended=table.get("ended", "vacate"),
        hold_hours=int(table.get("hold_hours", 48)),
        edit_templates=tuple(table["edit"]),
        heldback_templates=tuple(table["heldback"]),
        classes=tuple(table.get("classes", ())),
        not_values=tuple(table.get("not_values", ())),
        vacant_text=table.get("vacant_text", ""),
        former_text=table.get("former_text", ""),
        datatype=ValueKind(table.get("datatype", "item")),
        series=bool(table.get("series", False)),
        render=table.get("render", ""),
        unit_names=tuple(sorted(table.get("unit_names", {}).items())),
        languages=tuple(table.get("languages", ("en", "mul"))),
        kinds=(kinds,) if isinstance(kinds, str) else tuple(kinds),
        neighbours=tuple(table.get("neighbours", ())),
        shipped=shipped,
    )
