"""One record of an evaluation: the fact to write, and what is asked before and after.

Formats are told by their keys:

| format | source | keys |
|---|---|---|
| counterfact | Meng et al. 2022 (arXiv 2202.05262), `azhx/counterfact` | `requested_rewrite`, ... |
| tracing | `NeelNanda/counterfact-tracing` | `relation_prefix`, `target_true`, `target_false`, ... |
| zsre | Levy et al. 2017, as MEND, MEMIT and EasyEdit use it | `src`, `rephrase`, `loc`, ... |
| fact | factsync's own: one `EditRequest` and what to ask | `prompts`, `target`, ... |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from editor.errors import BadRecordError
from editor.requests import EditRequest
from editor.wordings import PLACE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and the answer it should get.

    Attributes:
        prompt: the text.
        answer: what should follow.
        rival: what must not be likelier; None where only the answer counts.
    """

    prompt: str
    answer: str
    rival: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One record.

    Attributes:
        case_id: its name in the data set.
        relation: property id, or the template where the data set names no relation.
        request: the fact to write; `old_target` is the true object of a counterfactual.
        paraphrases: the data set's own other wordings.
        clean_paraphrases: wordings without a distracting sentence in front.
        neighbourhood: of other subjects; what they say must stay.
        portability: what follows from the fact in a second hop.
        generation: openings that text is sampled from.
        target_id: item id of the target, which finds its reference texts.
    """

    case_id: str
    relation: str
    request: EditRequest
    paraphrases: tuple[Question, ...] = ()
    clean_paraphrases: tuple[Question, ...] = ()
    neighbourhood: tuple[Question, ...] = ()
    portability: tuple[Question, ...] = ()
    generation: tuple[str, ...] = ()
    target_id: str | None = None


def read_case(record: object, number: int) -> Case:
    """Read one record of any known format.

    Args:
        record: as parsed from JSON.
        number: its place in the file; names records that have no name.

    Returns:
        The case.

    Raises:
        BadRecordError: of no known format, a key is missing, or a text is empty.
    """
    if not isinstance(record, dict):
        raise BadRecordError("is not an object")
    for key, reader in _READERS.items():
        if key in record:
            try:
                return reader(record, number)
            except KeyError as error:
                raise BadRecordError(f"has no {error}") from error
            except (TypeError, AttributeError, IndexError) as error:
                raise BadRecordError(f"has a value of the wrong kind ({error})") from error
    raise BadRecordError(f"has none of the keys {', '.join(_READERS)}")


def _counterfact(record: Record, number: int) -> Case:
    rewrite = record["requested_rewrite"]
    new, old = rewrite["target_new"], rewrite["target_true"]
    name = str(record.get("case_id", number))
    request = _request(name, rewrite["subject"], rewrite["prompt"], new["str"], old["str"])

    def asked(key: str) -> tuple[Question, ...]:
        return tuple(Question(p, request.target, request.old_target) for p in _texts(record, key))

    true = _text(old["str"], "target_true")
    near = tuple(Question(p, true, request.target) for p in _texts(record, "neighborhood_prompts"))
    return Case(
        case_id=name,
        relation=str(rewrite.get("relation_id") or rewrite["prompt"]),
        request=request,
        paraphrases=asked("paraphrase_prompts"),
        clean_paraphrases=asked("clean_paraphrase_prompts"),
        neighbourhood=near,
        # The original names ten openings a record; where there are none, the edited prompt opens.
        generation=_texts(record, "generation_prompts")
        or (request.prompts[0].replace(PLACE, request.subject),),
        target_id=new.get("id"),
    )


def _tracing(record: Record, number: int) -> Case:
    template = f"{record['relation_prefix']}{PLACE}{record['relation_suffix']}".strip()
    request = _request(
        str(number), record["subject"], template, record["target_false"], record["target_true"]
    )
    return Case(
        case_id=str(number),
        relation=str(record.get("relation_id") or template),
        request=request,
        generation=(template.replace(PLACE, request.subject),),
        target_id=record.get("target_false_id"),
    )


def _zsre(record: Record, number: int) -> Case:
    subject, question = _text(record["subject"], "subject"), _text(record["src"], "src")
    if subject not in question:
        raise BadRecordError(f"does not name its subject {subject!r} in `src`")
    hop = record.get("portability") or {}
    # Meng et al. write the true answer; the layout with second hops is made for the alternative one.
    target = record["alt"] if hop else record["answers"][0]
    name = str(record.get("case_id", number))
    request = _request(name, subject, question.replace(subject, PLACE, 1), target, None)
    further = (
        (Question(_text(hop["New Question"], "New Question"), _text(hop["New Answer"], "New Answer")),)
        if hop.get("New Question")
        else ()
    )
    kept = _text(record["loc"], "loc")
    return Case(
        case_id=name,
        relation=request.prompts[0],
        request=request,
        paraphrases=(Question(_text(record["rephrase"], "rephrase"), request.target),),
        neighbourhood=(
            Question(kept if kept.endswith("?") else f"{kept}?", _text(record["loc_ans"], "loc_ans")),
        ),
        portability=further,
        generation=(question,),
    )


def _fact(record: Record, number: int) -> Case:
    name, old = str(record.get("fact_id", number)), record.get("old_target")
    request = EditRequest(
        fact_id=name,
        subject_id=str(record.get("subject_id", name)),
        subject=_text(record["subject"], "subject"),
        prompts=tuple(_template(prompt) for prompt in record["prompts"]),
        target=_text(record["target"], "target"),
        heldback=tuple(_template(prompt) for prompt in record.get("heldback") or ()),
        old_target=None if old is None else _text(old, "old_target"),
    )
    if not request.prompts:
        raise BadRecordError("has no prompt")
    return case_of(request, relation=str(record.get("relation", request.prompts[0])))


def case_of(request: EditRequest, *, relation: str, neighbourhood: tuple[Question, ...] = ()) -> Case:
    """Make a case of a fact; its held-back wordings are the paraphrases.

    Args:
        request: the fact.
        relation: property id.
        neighbourhood: of other subjects.

    Returns:
        The case.
    """
    worded = tuple(
        Question(template.replace(PLACE, request.subject), request.target, request.old_target)
        for template in request.heldback
    )
    return Case(
        case_id=request.fact_id,
        relation=relation,
        request=request,
        paraphrases=worded,
        neighbourhood=neighbourhood,
        generation=(request.prompts[0].replace(PLACE, request.subject),),
    )


def _request(name: str, subject: object, template: object, target: object, old: object) -> EditRequest:
    return EditRequest(
        fact_id=name,
        subject_id=name,
        subject=_text(subject, "subject"),
        prompts=(_template(template),),
        target=_text(target, "target"),
        old_target=None if old is None else _text(old, "target_true"),
    )


def _template(value: object) -> str:
    text = _text(value, "prompt")
    if text.count(PLACE) != 1:
        raise BadRecordError(f"needs exactly one {PLACE} in its prompt {text!r}")
    return text


def _texts(record: Record, key: str) -> tuple[str, ...]:
    """Return a list of texts, which a record may do without."""
    found = record.get(key) or []
    if not isinstance(found, list):
        raise BadRecordError(f"has no list in `{key}`")
    return tuple(_text(one, key) for one in found)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadRecordError(f"has no text in `{name}`")
    return value.strip()


_READERS: dict[str, Callable[[Record, int], Case]] = {
    "requested_rewrite": _counterfact,
    "relation_prefix": _tracing,
    "src": _zsre,
    "prompts": _fact,
}
