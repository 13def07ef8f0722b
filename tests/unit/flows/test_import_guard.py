"""The four import names are ours."""

from importlib.metadata import packages_distributions

import pytest

from flows.errors import ForeignPackageError
from flows.import_guard import PACKAGES, check_import_names


def test_names_resolve_to_this_checkout():
    check_import_names()


def test_no_other_distribution_claims_our_names():
    owners = packages_distributions()
    for name in PACKAGES:
        assert set(owners.get(name, ["factsync"])) == {"factsync"}


def test_a_foreign_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "editor.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "editor", raising=False)
    with pytest.raises(ForeignPackageError, match="which is not factsync's"):
        check_import_names()
