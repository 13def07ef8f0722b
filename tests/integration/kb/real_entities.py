"""Entity documents as Wikidata gave them, where this machine has them."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("FACTSYNC_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
ENTITIES = SHARED / "entities"
needs_entities = pytest.mark.skipif(not ENTITIES.exists(), reason=f"the real entities are not at {ENTITIES}")


def real_documents():
    found = {}
    for name in (
        "Q1752.json",
        "Q183.json",
        "Q8646.json",
        "wbgetentities-Q32063953.json",
        "wbgetentities-Q6-Q42-P31.json",
        "Q494290.json",
    ):
        raw = json.loads((ENTITIES / name).read_text(encoding="utf-8"))
        for one in raw["entities"].values() if "entities" in raw else [raw]:
            if "missing" not in one:
                found[one["id"]] = one
    with gzip.open(ENTITIES / "full_entities_2025_2026.jsonl.gz") as lines:
        for line in lines:
            one = json.loads(line)
            found[one["id"]] = one
    return [one for one in found.values() if one["type"] == "item"]
