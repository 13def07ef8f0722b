"""A Wikidata of a few items, and nights over it: real pulls, plans and promotions, without a model."""

from datetime import timedelta

from flows import night
from flows.settings import Settings
from flows.workspace import Workspace
from kb.model import Label, Probe, Rank, Statement, Value
from storage.checkpoints import CheckpointFiles
from tests.unit.storage import steps

DAY = timedelta(days=1)
OLD = steps.START - 30 * DAY
"""Long enough ago to have passed every hold of a value."""


class World:
    """Items with statements and labels, and a home that follows them.

    Attributes:
        at: now.
        texts: label by item.
        merged: target by item.
        waits: reason by subject and property of what is held back.
        live: what the model says, by subject, property and slot.
    """

    def __init__(self, home):
        self._settings, self._files = Settings.read(home), CheckpointFiles(home / "checkpoints")
        self.at = steps.START
        self.texts, self.merged = {}, {}
        self.revisions, self.skipped = {}, []
        self._items = {}

    def put(self, item, label=None, *statements, edited=None):
        """Write an item: (number, property, value) and what else a statement has."""
        revision = self._items[item][0] + 1 if item in self._items else 1
        self._items[item] = (revision, edited or self.at, statements)
        if label is not None:
            self.texts[item] = label

    def night(self):
        """Let a day pass and sync; gives what is owed, which is promoted."""
        self.at += DAY
        with Workspace.open(self._settings) as ws:
            ws.ledger.ensure_model(ws.model_name, "local", steps.BASE)
            with ws.writer() as lease:
                self.pull(ws, lease)
                owed = ws.owed(lease.model)
                if owed:
                    run = ws.ledger.begin_run(lease, "sync", reference_time=self.at)
                    made = steps.make_candidate(ws.ledger, lease, run, self._files)
                    ws.ledger.promote(lease, made, reason="all well")
                    ws.ledger.finish_run(lease, run, "succeeded")
                pending, live = ws.ledger.pending(lease.model), ws.ledger.live_facts(lease.model)
        self.waits = {(row.subject, row.property): row.reason for row in pending}
        self.live = {(row.subject, row.property, row.slot): row.label for row in live}
        return [(row.op, row.subject, row.property, row.slot, row.target) for row in owed]

    def says_no(self, subject):
        """Let a person block what waits of an item."""
        with Workspace.open(self._settings) as ws, ws.writer() as lease:
            (waits,) = (row for row in ws.ledger.pending(lease.model) if row.subject == subject)
            ws.ledger.decide(lease, waits.id, "blocked", by="Kim")

    def sources(self):
        """The statements behind what is live."""
        with Workspace.open(self._settings) as ws:
            facts = ws.ledger.live_facts(ws.model)
            behind = ws.ledger.sources(row.request_id for row in facts)
        return sorted({statement for rows in behind.values() for statement, _ in rows})

    def pull(self, ws, lease, *, plan=True):
        """Read what changed, and plan it unless somebody pulls the plug."""
        seen = night.probe(ws, self, as_of=self.at)
        pulled = night.pull(ws, lease.model, self, seen)
        run = night.begin(ws, lease, pulled.seen)
        night.record(ws, lease, run, pulled)
        if plan:
            night.plan(ws, lease, run, pulled)
        ws.ledger.finish_run(lease, run, "nothing")

    def torn_night(self):
        """A run that is killed between reading and planning."""
        with Workspace.open(self._settings) as ws:
            ws.ledger.ensure_model(ws.model_name, "local", steps.BASE)
            with ws.writer() as lease:
                self.pull(ws, lease, plan=False)

    # A `kb.feed.ChangeFeed`

    def lag(self):
        return self.at

    def discover(self, *_window):
        return sorted(item for item, (_, _, rows) in self._items.items() if rows and item not in self.merged)

    def probe(self, ids):
        return [self._probe(item) for item in sorted(ids)]

    def _probe(self, item):
        if item in self.merged or item not in self._items:
            return Probe(item, None, None, self.merged.get(item))
        revision, edited, _ = self._items[item]
        return Probe(item, revision, edited)

    def statements(self, ids, properties):
        found = []
        for item in (one for one in ids if one in self._items and one not in self.merged):
            revision, _, rows = self._items[item]
            self.revisions[item] = revision
            found += [
                Statement(f"{item}${number}", item, prop, value, Rank.NORMAL, revision=revision)
                for number, prop, value in rows
                if prop in properties
            ]
        return found

    def labels(self, ids):
        named = [one for one in ids if one in self.texts and one not in self.merged]
        return {one: Label(one, self.texts[one], "en") for one in named}


def item(entity):
    """An item as a value."""
    return Value.item(entity)
