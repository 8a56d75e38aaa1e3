"""Collecting never takes what is needed, whatever is interrupted: a model of the store says what that is.

The machine puts contents, writes changes that name them, uploads updates, scrubs, collects, dies and comes back, while
failpoints break what it does half way. After every step all that committed rows name is there and whole; after the
folder was swept, nothing else is.
"""

import itertools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from koinon_coordinator.store import ModelVersion, Part, Scrub, Store, UpdateRow, models
from koinon_core import failpoints
from koinon_core.canonical import sha256
from koinon_core.errors import StoreError
from koinon_core.update import Head
from lab import Lab, files, noise

POOL = [noise(n, 20_000).tobytes() for n in range(8)] + [b"small %d" % n for n in range(4)]
CONTENT = st.integers(0, len(POOL) - 1)
PLACES = [name for name in failpoints.NAMES if name.startswith(("store.", "blob."))]


class Died(BaseException):
    """The process ends where it is."""


class Collecting(RuleBasedStateMachine):
    """`fresh()` gives (URL, folder) of an empty, migrated database."""

    fresh = staticmethod(lambda: ("", Path()))

    def __init__(self):
        super().__init__()
        url, self.root = self.fresh()
        self.url, self.numbers = url, itertools.count(1)
        self.store = Store(url, self.root)
        self.lab = Lab.create(self.store)
        self.versions = {v.round: v for v in self.store.kept_versions(self.lab.run.id)}
        self.first = {v.digest: self.store.bytes(v.digest) for v in self.versions.values()}
        self.updates = {}  # (round, client): digest
        self.pending = []  # put, and named by no row yet
        self.swept = False

    def teardown(self):
        failpoints.disarm()
        self.store.close()

    # -- what happens ---------------------------------------------------------------------------------------------

    def attempt(self, function, *arguments, versions=None, updates=None):
        """Do it. Whether it happened is seen from the database, as a coordinator does: then the model's versions and
        updates are those that are given. Returns what came of it, None if it was interrupted."""
        self.swept = False
        done = None
        try:
            done = function(*arguments)
        except StoreError:
            pass
        except Died:
            self.come_back()
        failpoints.disarm()
        self.versions = self.either(self.versions, versions, self.versions_there())
        self.updates = self.either(self.updates, updates, self.updates_there())
        return done

    def either(self, before, after, there):
        """What the model said before or says after, whichever is there; nothing between the two."""
        after = before if after is None else after
        assert there in (before, after)
        return there

    def versions_there(self):
        return {v.round: v for v in self.store.kept_versions(self.lab.run.id)}

    def updates_there(self):
        run = self.lab.run.id
        rows = (u for n in self.store.kept_rounds(run) for u in self.store.updates(run, n))
        return {(u.round, u.client): u.digest for u in rows}

    def come_back(self):
        """A new process: what was pinned or under way in the old one is forgotten."""
        failpoints.disarm()
        self.store.close()
        self.store = Store(self.url, self.root)
        self.pending.clear()

    # -- rules ----------------------------------------------------------------------------------------------------

    @rule(
        place=st.sampled_from(PLACES),
        error=st.sampled_from([Died(), OSError(5, "Input/output error")]),
        after=st.integers(0, 2),
    )
    def break_something(self, place, error, after):
        """The next thing that comes by there fails, or ends the process."""
        failpoints.disarm()
        if place.startswith("store.") and isinstance(error, OSError):
            error = StoreError("the database failed")
        count = itertools.count()

        def action(_):
            if next(count) == after:
                raise error

        failpoints.arm(place, action)

    @rule(some=st.lists(CONTENT, min_size=1, max_size=4))
    def put(self, some):
        for which in some:
            content = self.attempt(self.store.put, POOL[which])
            if content is not None:
                self.pending.append(content)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def write(self, data):
        """A new version names one to three of what was put."""
        chosen = data.draw(st.lists(st.sampled_from(self.pending), min_size=1, max_size=3))
        version = ModelVersion(next(self.numbers), *(digest for digest, _, _ in chosen))
        change = self.lab.change(models=[version], contents=list(chosen))
        self.attempt(self.store.write, change, versions={**self.versions, version.round: version})
        if version.round in self.versions:
            self.pending = [content for content in self.pending if content not in chosen]

    @rule(which=st.integers(0, 3), client=st.sampled_from(["c0", "c1"]), same=st.booleans())
    def stage(self, which, client, same):
        """A large update is uploaded, and its row is written: in a new round, or in one that has updates."""
        number = max((n for n, c in self.updates if c != client), default=0) if same else 0
        part, data = Part(self.lab.run.id, number or next(self.numbers), client), POOL[which]
        if (part.round, client) in self.updates:
            return
        updates = {**self.updates, (part.round, client): sha256(data)}
        self.attempt(self.staged, part, data, updates=updates)

    def staged(self, part, data):
        incoming = self.store.uploads.receive(part, sha256(data), len(data))
        if incoming is not None:  # else it is here from before
            with incoming:
                incoming.write(data[incoming.offset :])
                incoming.finish()
        row = UpdateRow(part.client, part.round, sha256(data), len(data), "raw", Head(), 1.0, None)
        self.store.write(self.lab.change(updates=[row]))

    @rule(data=st.data(), gone=st.booleans())
    def scrub(self, data, gone):
        """Some versions lose their states, or go; some rounds lose their updates."""
        old = sorted(self.versions)
        chosen = (
            tuple(self.versions[n] for n in data.draw(st.lists(st.sampled_from(old), unique=True)))
            if old
            else ()
        )
        rounds = sorted({n for n, _ in self.updates})
        numbers = tuple(data.draw(st.lists(st.sampled_from(rounds), unique=True))) if rounds else ()
        bare = {v.round: replace(v, state="", down="") for v in chosen}
        versions = {n: bare.get(n, v) for n, v in self.versions.items() if not (gone and n in bare)}
        updates = {k: d for k, d in self.updates.items() if k[0] not in numbers}
        change = self.lab.change(scrub=Scrub(numbers, chosen, chosen if gone else ()))
        self.attempt(self.store.write, change, versions=versions, updates=updates)

    @rule()
    def collect(self):
        self.attempt(self.store.collect, {sha256(data) for data in POOL} | set(self.first))

    @rule()
    def sweep(self):
        """As at every start, before anything else."""
        armed = dict(failpoints._armed)
        self.come_back()
        failpoints._armed.update(armed)
        self.attempt(self.store.sweep)
        self.come_back()
        self.store.sweep()
        self.swept = True

    # -- what must hold -------------------------------------------------------------------------------------------

    def named(self):
        return {d for v in self.versions.values() for d in (v.digest, v.state, v.down) if d}

    @invariant()
    def what_is_named_is_there(self):
        self.store._small.clear()
        known = {sha256(data): data for data in POOL} | self.first
        for digest in self.named():
            assert self.store.bytes(digest) == known[digest]
        run = self.lab.run.id
        for (number, client), digest in self.updates.items():
            (row,) = (u for u in self.store.updates(run, number) if u.client == client)
            assert bytes(self.store.update_window(run, row)(0, row.size)) == known[digest]

    @invariant()
    def after_a_sweep_nothing_else_is(self):
        if not self.swept:
            return
        digests = self.store.database.read(
            "all", lambda tx: set(tx.execute(select(models.Content.digest)).scalars())
        )
        assert digests == self.named()
        known = {sha256(data): data for data in POOL}
        large = {self.store.blobs.path(d) for d in self.named() if len(known.get(d, b"")) > 1 << 16}
        run = self.lab.run.id
        large |= {self.store.uploads.path(Part(run, n, c), d) for (n, c), d in self.updates.items()}
        assert files(self.root) == {path.relative_to(self.root) for path in large}
        assert self.store.folder.used == sum(f.stat().st_size for f in self.root.rglob("*") if f.is_file())


EXAMPLES = {"sqlite": 15, "postgresql": 6}


@pytest.fixture
def fresh(request, database_url, tmp_path):
    """(kind, what makes empty databases of it)."""
    if database_url.startswith("sqlite"):
        Store(database_url).close()

        def copy():
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            shutil.copy(tmp_path / "koinon.db", folder)
            return f"sqlite:///{folder / 'koinon.db'}", folder / "blobs"

        yield "sqlite", copy
        return
    server, made = request.getfixturevalue("postgres"), []

    def create():
        made.append(server.create())
        return made[-1], Path(tempfile.mkdtemp(dir=tmp_path))

    yield "postgresql", create
    for url in made:
        server.drop(url)


def test_whatever_is_interrupted_what_is_needed_stays_and_what_is_not_goes(fresh):
    kind, make = fresh
    machine = type("Machine", (Collecting,), {"fresh": staticmethod(make)})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=EXAMPLES[kind], stateful_step_count=25, suppress_health_check=checks),
    )
