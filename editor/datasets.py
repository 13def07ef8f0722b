"""Records of an evaluation from a file or from the hub, and the choice of those that are used.

A bad record is reported with its line and left out, never silently.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from editor.cases import Case, read_case
from editor.errors import BadRecordError, DataFormatError, DataNotFoundError, MissingLibraryError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that was left out.

    Attributes:
        line: where it begins in the file; for a hub data set the number of its row, from 1.
        reason: what is wrong with it.
    """

    line: int
    reason: str

    def __str__(self) -> str:
        """One line for logs and reports."""
        return f"line {self.line}: the record {self.reason}; left out"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Records that can be used.

    Attributes:
        name: path or hub name.
        digest: SHA-256 of what was read.
        cases: the good ones, in order.
        skipped: the others.
    """

    name: str
    digest: str
    cases: tuple[Case, ...]
    skipped: tuple[Skipped, ...] = ()


def load(source: str | Path, *, split: str = "train") -> Dataset:
    """Read a data set.

    Args:
        source: a ``.json`` (one list) or ``.jsonl`` file, or a hub name such as ``azhx/counterfact``.
        split: of a hub data set.

    Returns:
        Its good records.

    Raises:
        DataNotFoundError: neither a file nor a hub name that can be reached.
        DataFormatError: not JSON, or no record is good.
        MissingLibraryError: a hub name, and the package `datasets` is not installed.
    """
    path, name = Path(source), str(source)
    if path.is_file():
        blob = path.read_bytes()
        digest = hashlib.sha256(blob).hexdigest()
        found = _parsed(blob.decode("utf-8-sig", errors="replace"), name)  # a mark would hide the list
    elif _is_hub_name(name):
        rows = _from_hub(name, split)
        text = json.dumps(rows, sort_keys=True, ensure_ascii=False, default=str)
        digest, found = hashlib.sha256(text.encode()).hexdigest(), enumerate(rows, start=1)
    else:
        raise DataNotFoundError(
            f"There is no file {name!r}: give a .json or .jsonl file, or a data set's hub name such as "
            "azhx/counterfact.",
            source=name,
        )
    return read(found, name=name, digest=digest)


def read(records: Iterable[tuple[int, object]], *, name: str, digest: str) -> Dataset:
    """Sort records into good and bad.

    Args:
        records: (line, record as parsed), or (line, the error that its text gave).
        name: for messages.
        digest: of the source.

    Returns:
        The data set.

    Raises:
        DataFormatError: no record is good.
    """
    cases: list[Case] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for number, (line, record) in enumerate(records):
        try:
            case = _case(record, number, seen)
        except BadRecordError as error:
            skipped.append(Skipped(line, str(error)))
            log.warning("%s, %s", name, skipped[-1])
            continue
        seen.add(case.case_id)
        cases.append(case)
    if not cases:
        first = f" The first: {skipped[0]}." if skipped else ""
        raise DataFormatError(f"{name} holds no record that can be used.{first}", source=name)
    return Dataset(name, digest, tuple(cases), tuple(skipped))


def _case(record: object, number: int, seen: set[str]) -> Case:
    if isinstance(record, BadRecordError):
        raise record
    case = read_case(record, number)
    if case.case_id in seen:
        raise BadRecordError(f"has the name of an earlier one ({case.case_id})")
    return case


def choose(
    dataset: Dataset, count: int, *, seed: int | None = None, relations: Sequence[str] = ()
) -> tuple[Case, ...]:
    """Take records of different subjects, in the order of the file or drawn by a seed.

    One subject is edited once: a second record about it would contradict the first. Several relations are
    mixed in equal shares, as far as they reach.

    Args:
        dataset: to take from.
        count: how many.
        seed: of the draw; None keeps the order of the file.
        relations: only these; none means all as they come.

    Returns:
        The records.

    Raises:
        DataFormatError: fewer records than asked for.
    """
    subjects: set[str] = set()
    usable: list[Case] = []
    for case in dataset.cases:
        key = case.request.subject.casefold()
        if key not in subjects and (not relations or case.relation in relations):
            subjects.add(key)
            usable.append(case)
    if seed is not None:
        random.Random(seed).shuffle(usable)  # noqa: S311 - no secret
    chosen = _shared(usable, count, relations) if relations else usable[:count]
    if len(chosen) < count:
        of = f" of {', '.join(relations)}" if relations else ""
        raise DataFormatError(
            f"{dataset.name} has {len(chosen)} usable records{of} about different subjects, "
            f"{count} were asked for: ask for fewer.",
            source=dataset.name,
            usable=len(chosen),
        )
    return tuple(chosen)


def _shared(usable: Sequence[Case], count: int, relations: Sequence[str]) -> list[Case]:
    """Take turns between the relations."""
    queues = [[case for case in usable if case.relation == relation] for relation in relations]
    turns = max((len(queue) for queue in queues), default=0)
    return [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)][:count]


def _parsed(text: str, name: str) -> Iterator[tuple[int, object]]:
    """Yield (line, record); a JSON list and one record a line are told apart by the first character."""
    if text.lstrip()[:1] == "[":
        yield from _list_items(text, name)
        return
    for line, content in enumerate(text.split("\n"), start=1):  # strings may hold what else ends lines
        if content.strip():
            try:
                yield line, json.loads(content)
            except json.JSONDecodeError as error:
                yield line, BadRecordError(f"is not JSON ({error.msg})")


def _list_items(text: str, name: str) -> Iterator[tuple[int, object]]:
    decoder = json.JSONDecoder()
    at, line, counted = text.index("[") + 1, 1, 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        line, counted = line + text.count("\n", counted, at), at
        if at >= len(text):
            raise DataFormatError(
                f"{name} ends before its list does: fetch it again.", source=name, line=line
            )
        if text[at] == "]":
            return
        try:
            record, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataFormatError(
                f"{name} is not JSON from line {error.lineno} on ({error.msg}): repair the file.",
                source=name,
                line=error.lineno,
            ) from error
        yield line, record


def _is_hub_name(name: str) -> bool:
    owner, slash, rest = name.partition("/")
    return bool(owner and slash and rest) and "/" not in rest and not Path(name).suffix and owner != "."


def _from_hub(name: str, split: str) -> list[object]:
    try:
        import datasets as hub  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise MissingLibraryError(
            f"Reading {name!r} from the hub needs the package `datasets`: run "
            "`pip install -e '.[datasets]'`, or download the data set and give its file.",
            package="datasets",
        ) from error
    try:
        return list(hub.load_dataset(name, split=split))
    except (OSError, ValueError, RuntimeError) as error:
        raise DataNotFoundError(
            f"The data set {name!r} (split {split!r}) could not be read from the hub ({error}): "
            "check the name and the network, or download it and give its file.",
            source=name,
        ) from error
