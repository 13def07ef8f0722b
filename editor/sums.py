"""Sums of outer products over a stream of text, kept while the pass runs: C and, of every tenth row, F.

Some of the text is kept as it was read: what other text an edit must not move (`editor.drift`).

Rows are counted in the order in which they come, so a pass that goes on from a kept file gives the bits of
one that was never interrupted.
"""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from dataclasses import asdict, dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from editor import activations
from editor.batching import in_groups
from editor.errors import NonFiniteError
from editor.requests import encode

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from editor.model import LanguageModel
    from editor.moments import MomentsKey
    from editor.progress import Progress

log = logging.getLogger(__name__)

_BATCH_TOKENS = 4096
_LONGEST = 1024
"""Tokens of a text that are read."""
_WIDE = 8192
_HELD_OUT = 10
_MOST_TEXTS, _TEXT_TOKENS = 512, 64


@dataclass(slots=True)
class Sums:
    """Σ k kᵀ of what was counted so far: of every tenth row (F) apart from the rest (C).

    Attributes:
        key: what is counted.
        matrices: by layer, C and F, (2, d_k, d_k).
        counts: tokens of C and of F.
        rows: of both.
        texts: token ids of the first of them, in pieces of up to 64.
    """

    key: MomentsKey
    matrices: dict[int, Float[Tensor, "2 d_k d_k"]]
    counts: list[int]
    rows: int = 0
    texts: list[tuple[int, ...]] = field(default_factory=list)

    @classmethod
    def nothing(cls, key: MomentsKey, d_k: int) -> Sums:
        """Return the sums before the first row."""
        return cls(key, {layer: torch.zeros(2, d_k, d_k, dtype=_exact(d_k)) for layer in key.layers}, [0, 0])

    @classmethod
    def kept_in(cls, path: Path | None, key: MomentsKey) -> Sums | None:
        """Return what `save` wrote for the same key; None where there is no such file, or a damaged one."""
        if path is None or not path.exists():
            return None
        try:
            tensors, header = read(path)
            counts, rows = header.pop("counts"), header.pop("rows")
            if header != json.loads(json.dumps(asdict(key))):
                return None
            matrices = {layer: tensors[f"layer{layer}"] for layer in key.layers}
            return cls(key, matrices, counts, rows, unpacked(tensors["texts"]))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the pass can begin anew
            log.warning("%s cannot be read (%s): the second moments are measured from the start", path, error)
            return None

    def save(self, path: Path) -> None:
        """Write one file, whole or not at all."""
        tensors = {f"layer{layer}": matrices for layer, matrices in self.matrices.items()}
        tensors["texts"] = packed(self.texts)
        write(path, tensors, {**asdict(self.key), "counts": self.counts, "rows": self.rows})

    @property
    def tokens(self) -> int:
        """Tokens counted."""
        return sum(self.counts)

    def add(self, lm: LanguageModel, rows: Sequence[Sequence[int]], most: int, tell: Progress | None) -> None:
        """Count the keys of further rows.

        Raises:
            NonFiniteError: a key is not finite.
        """
        parts: tuple[list[Sequence[int]], list[Sequence[int]]] = ([], [])
        for number, row in enumerate(rows, start=self.rows):
            parts[number % _HELD_OUT == 0].append(row)
        for which, part in enumerate(parts):
            for layer, found in _summed(lm, part, self.key.layers).items():
                self.matrices[layer][which] += found
            self.counts[which] += sum(len(row) for row in part)
        self.rows += len(rows)
        special = set(lm.tokenizer.all_special_ids)
        self.texts += islice(_pieces(rows, special), _MOST_TEXTS - len(self.texts))
        if tell is not None:
            tell("moments", self.tokens, most)

    def suffice(self, enough: float, device: torch.device) -> bool:
        """Return whether the excess is small enough; never for an `enough` of 0."""
        excess = self.excess(device) if enough else None
        return excess is not None and excess <= enough

    def excess(self, device: torch.device) -> float | None:
        """Return the largest tr(C⁻¹ F) / d_k - 1 of the layers; infinite of one row, None of none."""
        rest, fresh = self.counts
        if not rest or not fresh:
            return math.inf if rest or fresh else None
        return max(excess_of(C.to(device) / rest, F.to(device) / fresh) for C, F in self.matrices.values())

    def mean(self) -> dict[int, Float[Tensor, "d_k d_k"]]:
        """Return E[k kᵀ] of all rows, by layer."""
        return {layer: (C + F).div_(max(1, self.tokens)).float() for layer, (C, F) in self.matrices.items()}


def _exact(d_k: int) -> torch.dtype:
    """Return the precision of the sums: of wide keys float64 would take too much memory."""
    return torch.float64 if d_k <= _WIDE else torch.float32


def excess_of(C: Float[Tensor, "d_k d_k"], F: Float[Tensor, "d_k d_k"]) -> float:
    """Return tr(C⁻¹ F) / d_k - 1."""
    lower, info = torch.linalg.cholesky_ex(C.double())
    if int(info):
        return math.inf
    return float(torch.cholesky_solve(F.double(), lower).diagonal().mean()) - 1


@torch.no_grad()
def _summed(
    lm: LanguageModel, rows: Sequence[Sequence[int]], layers: tuple[int, ...]
) -> dict[int, Float[Tensor, "d_k d_k"]]:
    """Return Σ k kᵀ over all tokens of some rows, by layer."""
    d_k, exact = lm.layers.d_k, _exact(lm.layers.d_k)
    sums = {layer: torch.zeros(d_k, d_k, dtype=exact, device=lm.device) for layer in layers}

    def keys_of(group: list[Sequence[int]]) -> dict[int, Tensor]:
        ids, mask, positions = activations.padded(group, lm.device)
        with activations.record(lm, keys=layers) as (keys, _):
            activations.run(lm, ids, mask, positions, stop_after=max(layers))
        return {layer: own.float().reshape(*ids.shape, -1)[mask.bool()] for layer, own in keys.items()}

    for _, keys in in_groups(sorted(rows, key=len, reverse=True), _BATCH_TOKENS, len, keys_of):
        for layer, found in keys.items():
            sums[layer] += (found.T @ found).to(exact)
        keys.clear()  # the next run needs the room
    for layer, matrix in sums.items():
        if not torch.isfinite(matrix).all():
            raise NonFiniteError(
                f"A key at layer {layer} is not finite: check the model.", where="moments", layer=layer
            )
    return {layer: matrix.cpu() for layer, matrix in sums.items()}


def tokenised(
    lm: LanguageModel, texts: Sequence[str], tokens: int, *, start: int
) -> Iterator[list[list[int]]]:
    """Yield the rows of a corpus, some at a time, from one on; no more tokens than wanted."""
    longest = min(_LONGEST, lm.positions or _LONGEST)
    rows: list[list[int]] = []
    number = total = size = 0
    for text in texts:
        ids = encode(lm.tokenizer, text)[0][: min(longest, tokens - total)]
        if ids:
            total += len(ids)
            number += 1
            if number > start:
                rows.append(list(ids))
                size += len(ids)
        if size >= 4 * _BATCH_TOKENS:
            yield rows
            rows, size = [], 0
        if total >= tokens:
            break
    if rows:
        yield rows


def _pieces(rows: Sequence[Sequence[int]], special: Container[int]) -> Iterator[tuple[int, ...]]:
    """Cut rows, each piece with what opens its row: without it some models (Gemma) are lost."""
    for row in rows:
        opening = tuple(takewhile(lambda token: token in special, row))
        for first in range(len(opening), len(row) - 1, _TEXT_TOKENS):
            yield (*opening, *row[first : first + _TEXT_TOKENS])


def packed(texts: Sequence[Sequence[int]]) -> Int[Tensor, "texts tokens"]:
    """Return token ids as a tensor to be kept, -1 where a text has ended."""
    tensor = torch.full((len(texts), max(map(len, texts), default=0)), -1, dtype=torch.int32)
    for number, text in enumerate(texts):
        tensor[number, : len(text)] = torch.tensor(text, dtype=torch.int32)
    return tensor


def unpacked(tensor: Int[Tensor, "texts tokens"]) -> list[tuple[int, ...]]:
    """Return what `packed` was given."""
    return [tuple(token for token in row if token >= 0) for row in tensor.tolist()]


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> None:
    """Write tensors and a header as one safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(descriptor)
    try:
        kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, scratch, metadata={"key": json.dumps(header, sort_keys=True)})
        with Path(scratch).open("rb") as file:
            os.fsync(file.fileno())
        Path(scratch).replace(path)
    finally:
        Path(scratch).unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of what `write` wrote."""
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads((file.metadata() or {})["key"])
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
