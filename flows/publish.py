"""Make a model that others can load: a checkpoint on its base, merged, as an adapter, or ready for GGUF.

The checkpoints stay in float32; what is published may be cast, and what the cast rounds away is counted.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from editor import delta as deltas
from editor import export as exports
from flows import card, heads, models
from flows.errors import NothingLiveError, OutputExistsError
from flows.formats import Dtype, Format

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from torch import Tensor

    from editor.delta import Delta
    from editor.model import LanguageModel
    from flows.workspace import Workspace
    from storage.records.checkpoints import CheckpointRow
    from storage.records.runs import Model


@dataclass(frozen=True, slots=True)
class Published:
    """A folder that was made.

    Attributes:
        folder: where.
        form: what it is and what the form cost, in words.
        rounding: what the cast did to the edit; None for an adapter.
        adapter: its rank and error; None for a merged folder.
    """

    folder: Path
    form: card.Form
    rounding: exports.Rounding | None = None
    adapter: exports.Adapter | None = None


def live_at(ws: Workspace, model: Model, at: datetime) -> CheckpointRow:
    """The checkpoint that was live at a moment.

    Args:
        ws: the home.
        model: whose checkpoint.
        at: the moment.

    Raises:
        NothingLiveError: the base itself was live then.
    """
    row = ws.ledger.head_at(model, at)
    if row is None:
        raise NothingLiveError(
            f"No checkpoint was live at {at:%Y-%m-%d %H:%M} UTC, the model was the base itself: name another "
            "moment; `factsync checkpoint list` shows when each was decided."
        )
    return row


def export(
    ws: Workspace,
    model: Model,
    row: CheckpointRow | None,
    out: Path | None = None,
    *,
    form: Format = Format.HF,
    dtype: Dtype = Dtype.FLOAT32,
    rank: int | None = None,
) -> Published:
    """Write a checkpoint as a folder, whole or not at all.

    Args:
        ws: the home.
        model: whose checkpoint.
        row: the checkpoint; None for the live one.
        out: the folder to make; None names one here by the digest.
        form: merged, as a PEFT adapter, or merged as llama.cpp's converter takes it.
        dtype: precision of what is written.
        rank: most rank of an adapter; None takes what the change needs.

    Raises:
        NothingLiveError: the base model is live.
        OutputExistsError: `out` is there already.
        CheckpointError: a file of the lineage is missing or damaged.
        OtherWeightsError: base and changes are not, to the bit, what was recorded.
        NothingToExportError: an adapter of a checkpoint that changes nothing.
    """
    row = row or ws.ledger.head(model)
    if row is None:
        raise NothingLiveError(_why_base(ws, model))
    out = out or Path(f"factsync-{str(row.digest)[:12]}")
    if out.exists():
        raise OutputExistsError(f"{out} is there already; name a folder that is not.")
    lineage = ws.ledger.lineage(model, row.id)
    changes = [models.read_delta(ws.files, digest) for digest in heads.standing(lineage)]
    lm = models.load_base(ws.settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        if form is Format.PEFT:
            done = _adapter(
                scratch, lm, changes, base=models.base_source(ws.settings), dtype=dtype, rank=rank
            )
        else:
            originals = _edited(lm, changes)
            models.put_on(lm, ws.files, lineage)
            done = _merged(scratch, lm, originals, dtype=dtype, for_gguf=form is Format.GGUF_READY)
        held = ws.ledger.live_facts(model, checkpoint=row.id) if row.state in card.LIVED else []
        sources = ws.ledger.sources(one.request_id for one in held if one.request_id is not None)
        text = card.card(model, row, lineage, done.form, len(held))
        (scratch / "README.md").write_text(text, encoding="utf-8")
        (scratch / card.FACTS_FILE).write_text(card.facts_lines(held, sources), encoding="utf-8")
        scratch.chmod(0o755)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Published(out, done.form, done.rounding, done.adapter)


def _why_base(ws: Workspace, model: Model) -> str:
    """Why there is no live checkpoint to write, and what to do."""
    if any(one.state in card.LIVED for one in ws.ledger.checkpoints(model)):
        return (
            "The base model is live, without any edit: `factsync export ID` exports an earlier checkpoint; "
            "`factsync checkpoint list` shows them."
        )
    return "The model has no promoted checkpoint yet; run `factsync sync` first."


def _edited(lm: LanguageModel, changes: Sequence[Delta]) -> dict[int, Tensor]:
    """Copies of the base model's weights that changes touch, by layer."""
    touched = {name for change in changes for name in change.changes}
    return deltas.copies(lm, [layer for name, layer in deltas.editable(lm).items() if name in touched])


def _merged(
    folder: Path, lm: LanguageModel, originals: Mapping[int, Tensor], *, dtype: Dtype, for_gguf: bool
) -> Published:
    rounding = exports.rounded_away(lm, originals, getattr(torch, dtype.value))
    lm.model.to(getattr(torch, dtype.value))
    lm.model.save_pretrained(folder)  # type: ignore[operator]
    lm.tokenizer.save_pretrained(folder)
    text = f"Merged weights in {dtype.value}; `AutoModelForCausalLM.from_pretrained` loads this folder."
    if dtype is not Dtype.FLOAT32:
        text += (
            f" The cast from float32 rounds {100 * rounding.share:.2f} % of the edited entries back to the "
            "base model's."
        )
    if for_gguf:
        _tell_older_converters(folder / "config.json")
        text += " llama.cpp's `convert_hf_to_gguf.py` takes it as it is."
    return Published(folder, card.Form("transformers", text), rounding=rounding)


def _tell_older_converters(path: Path) -> None:
    """Repeat two entries under their names before transformers 5: converters of 2025 read only those."""
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _adapter(
    folder: Path, lm: LanguageModel, changes: Sequence[Delta], *, base: str, dtype: Dtype, rank: int | None
) -> Published:
    made = exports.adapter(exports.total(changes), rank=rank, dtype=getattr(torch, dtype.value))
    for name, content in exports.adapter_files(made, base=base, transposed=lm.layers.transposed).items():
        (folder / name).write_bytes(content)
    quality = (
        "exact to float32's rounding" if made.exact else f"{100 * made.error:.3g} % of the change is missing"
    )
    text = (
        f"A LoRA adapter of rank {made.rank} in {dtype.value}, {quality}; "
        "`PeftModel.from_pretrained(base_model, folder)` puts it on the base model."
    )
    return Published(folder, card.Form("peft", text), adapter=made)
