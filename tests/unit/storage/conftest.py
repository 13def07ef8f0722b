"""Fixtures of the storage tests."""

from tests.unit.storage.databases import files, ledger, ledger_url, postgres

__all__ = ["files", "ledger", "ledger_url", "postgres"]
