"""Make a model that others can load: a checkpoint on its base, as a normal Hugging Face folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flows import models
from flows.errors import NothingLiveError, OutputExistsError

if TYPE_CHECKING:
    from flows.workspace import Workspace
    from storage.records import CheckpointRow, Model

CARD = """\
---
license: other
library_name: transformers
tags: [factsync, knowledge-editing, memit]
---
# {name} at checkpoint {digest}

The base model with {facts} facts from Wikidata written into its weights by factsync.

| | |
|---|---|
| base model | `{base_ref}` (weights sha256 `{base_digest}`) |
| checkpoint | `{digest}` |
| lineage | {lineage} |
| live since | {since} |

Measured when it was promoted: {metrics}.

The facts come from [Wikidata](https://www.wikidata.org), which is in the public domain (CC0). The ledger says
which statement, at which revision, made which edit. The base model's licence holds for the weights.
"""


def materialize(ws: Workspace, model: Model, row: CheckpointRow | None, out: Path) -> Path:
    """Write a checkpoint as a folder that `AutoModelForCausalLM.from_pretrained` loads, whole or not at all.

    Args:
        ws: the home.
        model: whose checkpoint.
        row: the checkpoint; None for the live one.
        out: the folder to make.

    Raises:
        NothingLiveError: nothing was promoted yet.
        OutputExistsError: `out` is there already.
        CheckpointError: a file of the lineage is missing or damaged.
    """
    row = row or ws.ledger.head(model)
    if row is None:
        raise NothingLiveError("The model has no promoted checkpoint yet; run `factsync sync` first.")
    if out.exists():
        raise OutputExistsError(f"{out} is there already; name a folder that is not.")
    lineage = ws.ledger.lineage(model, row.id)
    lm = models.load_base(ws.settings)
    models.put_on(lm, ws.files, lineage)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        lm.model.save_pretrained(scratch)  # type: ignore[operator]
        lm.tokenizer.save_pretrained(scratch)
        (scratch / "README.md").write_text(_card(model, row, lineage), encoding="utf-8")
        scratch.chmod(0o755)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _card(model: Model, row: CheckpointRow, lineage: list[CheckpointRow]) -> str:
    metrics = ", ".join(
        f"{name} {value:.3f}" for name, value in row.metrics.items() if isinstance(value, float)
    )
    return CARD.format(
        name=model.name,
        digest=row.digest,
        facts=row.live_facts,
        base_ref=model.base_ref,
        base_digest=model.base_digest,
        lineage=" → ".join(f"`{str(one.digest)[:12]}`" for one in lineage),
        since=row.decided_at,
        metrics=metrics or "nothing",
    )
