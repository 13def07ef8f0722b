"""One experiment of an evaluation: what it is keyed by, and the folder from which it goes on after a kill.

Everything is written under a temporary name and renamed, so that a file is whole or not there:

    experiments/<key>/
        taught-<batch>.safetensors   weights and state after a batch; only the last is kept
        answers-<batch>-<part>.parquet, writings-<part>.parquet, after-<batch>.json
        result.json                  the experiment is done
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from editor.metrics import Answer, Writing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from editor.cases import Case

SEPARATOR = " + "
"""Between relations that are mixed; a relation may be named by its template, which may hold a comma."""

ANSWERS = pa.schema(
    [
        ("method", pa.string()),
        ("edits", pa.int64()),
        ("batches", pa.int64()),
        ("seed", pa.int64()),
        ("relations", pa.string()),
        ("after_batch", pa.int64()),
        ("cohort", pa.int64()),
        ("case_id", pa.string()),
        ("relation", pa.string()),
        ("probe", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("rival", pa.string()),
        ("p_answer", pa.float64()),
        ("p_rival", pa.float64()),
        ("tokens", pa.int64()),
        ("matched", pa.int64()),
        ("said", pa.string()),
        ("success", pa.float64()),
        ("exact", pa.float64()),
        ("greedy", pa.float64()),
    ]
)
WRITINGS = pa.schema(
    [
        ("method", pa.string()),
        ("edits", pa.int64()),
        ("batches", pa.int64()),
        ("seed", pa.int64()),
        ("relations", pa.string()),
        ("case_id", pa.string()),
        ("relation", pa.string()),
        ("texts", pa.list_(pa.string())),
        ("entropy", pa.float64()),
        ("reference", pa.float64()),
    ]
)
_ANSWER_FIELDS = tuple(field.name for field in fields(Answer))
_WRITING_FIELDS = tuple(field.name for field in fields(Writing))


@dataclass(frozen=True, slots=True)
class Experiment:
    """One method on one choice of records.

    Attributes:
        method: its name.
        relations: the records' relations; empty for all.
        batches: the records, batch after batch.
        seed: of all that is drawn.
        basis: everything else that the numbers depend on.
    """

    method: str
    relations: tuple[str, ...]
    batches: tuple[tuple[Case, ...], ...]
    seed: int
    basis: Mapping[str, object]

    @property
    def cases(self) -> tuple[Case, ...]:
        """All records."""
        return tuple(case for batch in self.batches for case in batch)

    @property
    def label(self) -> dict[str, Any]:
        """What stands in every raw row."""
        return {
            "method": self.method,
            "edits": len(self.cases),
            "batches": len(self.batches),
            "seed": self.seed,
            "relations": SEPARATOR.join(self.relations),
        }

    @property
    def key(self) -> str:
        """Digest of all that the numbers depend on."""
        content = {
            **self.label,
            "cases": [[case.case_id for case in batch] for batch in self.batches],
            "basis": self.basis,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


class ExperimentFolder:
    """Where one experiment is kept.

    Args:
        root: the folder of the evaluation.
        experiment: which one.
    """

    def __init__(self, root: Path, experiment: Experiment) -> None:
        self.experiment = experiment
        self.path = root / "experiments" / experiment.key

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished experiment."""
        found: dict[str, Any] | None = self.read_json("result.json")
        return found

    def finish(self, result: Mapping[str, Any]) -> None:
        """Keep the result and drop the weights."""
        self.write_json("result.json", result)
        for path in self.path.glob("taught-*"):
            path.unlink()

    def keep(self, batch: int, weights: Mapping[str, Tensor], state: bytes, seconds: float) -> None:
        """Keep what goes on from a batch, in place of what went on from the batch before."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / f"taught-{batch:04d}.safetensors"
        scratch = path.with_suffix(".part")
        tensors = {f"weight:{name}": tensor.cpu().contiguous() for name, tensor in weights.items()}
        tensors["state"] = torch.tensor(np.frombuffer(state, dtype=np.uint8))
        save_file(tensors, scratch, metadata={"seconds": repr(seconds)})
        scratch.replace(path)
        for other in self.path.glob("taught-*.safetensors"):
            if other != path:
                other.unlink()

    def taught(self) -> tuple[int, dict[str, Tensor], bytes, float] | None:
        """Return (batch, weights, state, seconds of teaching) of the last batch that was kept."""
        found = sorted(self.path.glob("taught-*.safetensors"))
        if not found:
            return None
        with safe_open(found[-1], framework="pt") as file:
            seconds = float(file.metadata()["seconds"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        state = tensors.pop("state").numpy().tobytes()
        weights = {name.removeprefix("weight:"): tensor for name, tensor in tensors.items()}
        return int(found[-1].stem.removeprefix("taught-")), weights, state, seconds

    def answers(self, batch: int, part: int) -> list[Answer] | None:
        """Return the answers of one part, if they were kept."""
        rows = self._read(f"answers-{batch:04d}-{part:04d}.parquet")
        return None if rows is None else [_answer(row) for row in rows]

    def keep_answers(
        self, batch: int, part: int, answers: Sequence[Answer], cohorts: Mapping[str, int]
    ) -> None:
        """Keep the answers of one part."""
        rows = [
            {
                **self.experiment.label,
                "after_batch": batch,
                "cohort": cohorts[one.case_id],
                **asdict(one),
                "success": one.success,
                "exact": one.exact,
                "greedy": one.greedy,
            }
            for one in answers
        ]
        self._write(f"answers-{batch:04d}-{part:04d}.parquet", pa.Table.from_pylist(rows, ANSWERS))

    def writings(self, part: int) -> list[Writing] | None:
        """Return what was written in one part, if it was kept."""
        rows = self._read(f"writings-{part:04d}.parquet")
        if rows is None:
            return None
        return [
            Writing(**{name: row[name] for name in _WRITING_FIELDS} | {"texts": tuple(row["texts"])})
            for row in rows
        ]

    def keep_writings(self, part: int, writings: Sequence[Writing]) -> None:
        """Keep what was written in one part."""
        rows = [{**self.experiment.label, **asdict(one), "texts": list(one.texts)} for one in writings]
        self._write(f"writings-{part:04d}.parquet", pa.Table.from_pylist(rows, WRITINGS))

    def tables(self, kind: str) -> list[pa.Table]:
        """Return all kept rows of "answers" or "writings"."""
        return [pq.read_table(path) for path in sorted(self.path.glob(f"{kind}-*.parquet"))]

    def read_json(self, name: str) -> Any | None:  # noqa: ANN401 - what was written
        """Read what `write_json` wrote; None if it did not."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write_json(self, name: str, content: object) -> None:
        """Write a small file, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        scratch = self.path / f"{name}.part"
        scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        scratch.replace(self.path / name)

    def _read(self, name: str) -> list[dict[str, Any]] | None:
        path = self.path / name
        return pq.read_table(path).to_pylist() if path.exists() else None

    def _write(self, name: str, table: pa.Table) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        scratch = self.path / f"{name}.part"
        pq.write_table(table, scratch)
        scratch.replace(self.path / name)


def _answer(row: Mapping[str, Any]) -> Answer:
    return Answer(**{name: row[name] for name in _ANSWER_FIELDS})
