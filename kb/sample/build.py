"""Make the sample's files from its tables: ``python -m kb.sample.build``.

items.toml, facts.toml, changes.toml and nights.toml go in; night1.ttl, night2.ttl, expected.toml and the
table in README.md come out. The same tables always give the same bytes: nothing here asks the clock.
"""

from __future__ import annotations

import json
import logging
from typing import Final

from kb.sample.tables import HERE, read, states
from kb.sample.turtle import turtle

logger = logging.getLogger(__name__)

TABLE: Final = ("<!-- changes: made by build.py -->", "<!-- end of changes -->")


def expected() -> str:
    """expected.toml: what a sync of night two should make of each group that changed."""
    lines = [
        "# Made by build.py from changes.toml; do not edit.",
        "# What a sync of night two should make of each change.",
        "",
    ]
    for number, change in enumerate(read("changes.toml")["change"], start=1):
        for row in change["expect"]:
            entry = {
                "change": number,
                "what": change["what"],
                "subject": row.get("s", change["item"]),
                "property": row["p"],
                "kind": row["kind"],
                **{name: row[name] for name in ("old", "new", "reason") if name in row},
            }
            lines += ["[[expected]]", *(f"{name} = {_toml(value)}" for name, value in entry.items()), ""]
    return "\n".join(lines)


def table() -> str:
    """The changes as a table for the README."""
    rows = ["| # | what happened | item | edited (2026) | a sync makes of it |", "|---|---|---|---|---|"]
    for number, change in enumerate(read("changes.toml")["change"], start=1):
        outcomes = [
            " ".join(str(row[name]) for name in ("s", "p", "kind", "reason") if name in row)
            for row in change["expect"]
        ]
        cells = (
            number,
            change["title"],
            change["item"],
            f"{change['edited']:%m-%d %H:%M}",
            ", ".join(outcomes),
        )
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def build() -> dict[str, str]:
    """Every file this module makes, by name."""
    first, second = states()
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    before, rest = readme.split(TABLE[0])
    after = rest.split(TABLE[1])[1]
    return {
        "night1.ttl": turtle(first, "Night one of the sample. Made by build.py; CC0."),
        "night2.ttl": turtle(second, "Night two of the sample. Made by build.py; CC0."),
        "expected.toml": expected(),
        "README.md": f"{before}{TABLE[0]}\n{table()}\n{TABLE[1]}{after}",
    }


def _toml(value: str | int) -> str:
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    """Write the files."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name, text in build().items():
        (HERE / name).write_text(text, encoding="utf-8")
        logger.info("wrote %s", HERE / name)


if __name__ == "__main__":
    main()
