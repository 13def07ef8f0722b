"""What is kept of an edited subject: enough to protect it, to replace it and to take it out again."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save

from editor.delta import read_metadata, read_safetensors
from editor.digests import digest_of
from editor.errors import CorruptStateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.presets import MemitSettings
    from editor.requests import Unit


@dataclass(frozen=True, slots=True)
class SubjectState:
    """The keys that one subject's edit put into the solve, as measured that night, and their values.

    Attributes:
        subject_id: the caller's name for the subject.
        fact_ids: the facts that the state carries.
        keys: by layer, (m, d_k).
        values: by layer, (m, d): what the written matrix was asked to give for each key.
        depends: digest of all that z was made from (model, layers, prompts, targets, settings).
        label: the subject's text; frees the guards that were set on it.
        weight: how often the solve counts the state, where one that is being written counts once: keys and
            values are multiplied by its root.
        moment_weight: λ of the solve that set its values, if it counts more than once; 0 otherwise.
    """

    subject_id: str
    fact_ids: tuple[str, ...]
    keys: Mapping[int, Float[Tensor, "m d_k"]]
    values: Mapping[int, Float[Tensor, "m d"]]
    depends: str
    label: str = ""
    weight: float = 1.0
    moment_weight: float = 0.0


def depends_on(lm: LanguageModel, unit: Unit, settings: MemitSettings) -> str:
    """Return the digest of all that a unit's target state is made from, but for the edits live then."""
    rows = [[list(row.ids), row.lookup, list(row.labels)] for row in unit.rows]
    return digest_of({"model": lm.digest, "rows": rows, "settings": settings.of_targets()})


def to_bytes(states: Sequence[SubjectState]) -> bytes:
    """Store a list of states as one safetensors blob; equal lists give equal bytes."""
    index = [
        {
            "subject": s.subject_id,
            "facts": list(s.fact_ids),
            "depends": s.depends,
            "label": s.label,
            "weight": s.weight,
            "moment_weight": s.moment_weight,
        }
        for s in states
    ]
    tensors: dict[str, Tensor] = {}
    for number, state in enumerate(states):
        for layer in sorted(state.keys):
            tensors[f"{number:06d}:k{layer}"] = state.keys[layer].cpu().float().contiguous()
            tensors[f"{number:06d}:v{layer}"] = state.values[layer].cpu().float().contiguous()
    # One metadata key only: safetensors writes several in an order that changes from run to run.
    return save(
        tensors,
        metadata={"index": json.dumps({"format": "factsync-states-1", "states": index}, sort_keys=True)},
    )


def from_bytes(blob: bytes) -> list[SubjectState]:
    """Read what `to_bytes` wrote.

    Raises:
        CorruptStateError: the blob holds something else.
    """
    tensors, metadata = read_safetensors(blob), read_metadata(blob)
    try:
        kept: dict[tuple[int, str], dict[int, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            number, part = name.split(":")
            kept[int(number), part[0]][int(part[1:])] = tensor
        index = json.loads(metadata["index"])["states"]
        states = [
            SubjectState(
                entry["subject"],
                tuple(entry["facts"]),
                kept[number, "k"],
                kept[number, "v"],
                entry["depends"],
                entry.get("label", ""),
                entry.get("weight", 1.0),
                entry.get("moment_weight", 0.0),
            )
            for number, entry in enumerate(index)
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise CorruptStateError(f"The file of subject states is damaged ({error}): restore it.") from error
    return states


def stack(
    states: Sequence[SubjectState], layer: int, *, d: int, d_k: int, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "d_k n"], Float[Tensor, "d n"]]:
    """Gather the keys and values of many states at one layer, one a column, in float64.

    Args:
        states: any number of states, also none.
        layer: which layer.
        d: width of a value.
        d_k: width of a key.
        device: where to put them.

    Returns:
        Keys and values.
    """
    values = torch.cat([torch.zeros(0, d), *(state.values[layer].cpu() for state in states)])
    return keys_of(states, layer, d_k=d_k, device=device), values.double().T.to(device)


def keys_of(
    states: Sequence[SubjectState], layer: int, *, d_k: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "d_k n"]:
    """Gather the keys alone, as `stack` does."""
    keys = torch.cat([torch.zeros(0, d_k), *(state.keys[layer].cpu() for state in states)])
    return keys.double().T.to(device)
