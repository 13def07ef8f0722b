"""The ledger's shell: values by name, and a slip that ends nothing."""

import json

import pytest
from typer.testing import CliRunner

from flows.cli import ledger  # noqa: F401 - registers the command
from flows.cli.main import app


def sql(home, *arguments, typed=None):
    """Run `factsync sql` on a home of three nights."""
    return CliRunner().invoke(app, ["--home", str(home.home), "sql", "--json", *arguments], input=typed)


def test_values_are_given_by_name(nights):
    done = sql(nights, "--set", "subject=Q1", "SELECT target FROM live_facts WHERE subject = :subject")
    assert len(json.loads(done.stdout)) == 1
    asked = "SELECT count(*) AS edits FROM edit_history WHERE position >= :position AND property = :property"
    for position, edits in (("0", 3), ("1.5", 1)):
        done = sql(nights, "--set", f"position={position}", "--set", "property=P6", asked)
        assert json.loads(done.stdout) == [{"edits": edits}]


def test_a_value_that_is_missing_is_named(nights):
    done = sql(nights, "SELECT target FROM live_facts WHERE subject = :subject")
    assert "--set subject=" in str(done.exception)


@pytest.mark.parametrize("given", ["subject", "=Q1"])
def test_a_value_without_a_name_is_refused(nights, given):
    assert sql(nights, "--set", given, "SELECT 1").exit_code == 2


def test_a_refused_query_does_not_end_the_shell(nights):
    """The next query is answered; where a script asks, the end says that one was refused."""
    done = sql(nights, typed="DELETE FROM edit\nSELECT 1 AS one\n")
    assert done.exit_code == 2
    assert "Error: The query was refused" in done.stderr
    assert json.loads(done.stdout) == [{"one": 1}]
