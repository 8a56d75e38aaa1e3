"""What operators call: runs, created, listed, followed, controlled and exported."""

from __future__ import annotations  # gRPC's types take parameters in their stubs only

import asyncio
from collections.abc import AsyncIterator, Iterable
from functools import partial
from itertools import islice

from koinon_coordinator.federation import Federation
from koinon_coordinator.replay import replay
from koinon_coordinator.service.calls import Context, Table
from koinon_coordinator.store import RoundRow, RunRow, queries
from koinon_coordinator.store.queries import SentRow
from koinon_core.codec import size_limit
from koinon_core.errors import (
    Denied,
    NotFound,
    UsageError,
)  # fmt: skip
from koinon_core.round.state import MASKED_STAGES
from koinon_core.spec import RunSpec
from koinon_core.strategy import recipe
from koinon_core.wire import convert
from koinon_core.wire.methods import RUNS
from koinon_core.wire.v1 import runs_pb2

__all__ = ["Runs"]

_PIECE = 1 << 20
_WATCH_EVERY = 0.1
_AUDIT_PAGE = 200
_UPDATES_PAGE = 64  # with all the metrics that a head may have they stay below a message's limit
_MOST_ROUNDS = (1 << 63) - 1  # what a database can hold


class Runs:
    """The operators' handlers."""

    def __init__(self, federation: Federation):
        self._federation = federation

    @property
    def table(self) -> Table:
        return {
            RUNS.CREATE: self.create, RUNS.LIST: self.list_runs, RUNS.GET: self.get, RUNS.WATCH: self.watch,
            RUNS.CONTROL: self.control, RUNS.EXPORT: self.export, RUNS.AUDIT: self.audit,
            RUNS.REPLAY: self.replay, RUNS.UPDATES: self.updates, RUNS.MEASURE: self.measure,
        }  # fmt: skip

    async def create(
        self, requests: AsyncIterator[runs_pb2.CreateRequest], context: Context
    ) -> runs_pb2.CreateResponse:
        spec: RunSpec | None = None
        federation, size = self._federation, 0
        with federation.store.draft() as draft:
            async for request in requests:
                if request.HasField("spec"):
                    spec = RunSpec.decode(request.spec)
                elif spec is None:
                    raise UsageError("a run's spec comes before its model")
                else:
                    size += len(request.model)
                    if size > size_limit(spec.model):
                        raise UsageError("the first model is larger than its schema says")
                    await federation.db(draft.write, request.model)
            if spec is None:
                raise UsageError("a run needs a spec")
            run = await federation.create(spec, *draft.written(), operator=context.peer.name)
        return runs_pb2.CreateResponse(run=self._info(self._federation.find(run.id)))

    async def list_runs(self, request: runs_pb2.ListRequest, context: Context) -> runs_pb2.ListResponse:
        rows = sorted(self._federation.rows.values(), key=lambda row: row.created_at)
        return runs_pb2.ListResponse(runs=[self._info(row) for row in rows])

    async def get(self, request: runs_pb2.GetRequest, context: Context) -> runs_pb2.GetResponse:
        federation = self._federation
        row = federation.find(request.run)
        rounds = await federation.rounds(row.id)
        incidents = await federation.db(federation.store.incidents, row.id)
        version = await federation.db(federation.store.latest_model, row.id)
        now = federation.current(row)
        told = self._rounds(row, rounds)
        if request.costs:
            number = request.round if request.HasField("round") else None
            await self._add_costs(row, told, number)
        return runs_pb2.GetResponse(
            run=self._info(row), spec=row.spec, rounds=told,
            incidents=[
                runs_pb2.Incident(at=i.at, client=i.client, round=i.round, code=i.code, message=i.message)
                for i in incidents
            ],
            attached=federation.attached(row.id), model_digest=version.digest, head=now.head,
            audit_number=now.audit_number, audit_hash=now.audit_hash,
        )  # fmt: skip

    async def _add_costs(self, row: RunRow, rounds: Iterable[runs_pb2.RoundInfo], number: int | None) -> None:
        """What each device's part has cost, in one round or in all."""
        if number is not None and number > _MOST_ROUNDS:
            return
        costs = await self._federation.db(self._federation.store.costs, row.id, number)
        for r in rounds:
            for p in r.participants:
                if (spent := costs.get((r.number, p.client))) is not None:
                    p.spent.CopyFrom(convert.spent_to(row.id, r.number, spent))

    async def watch(
        self, request: runs_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[runs_pb2.WatchResponse]:
        federation = self._federation
        row = federation.find(request.run)
        driver = federation.drivers.get(row.id)
        changed = driver.watch() if driver else asyncio.Event()
        measured = federation.measured[row.id]
        heard = len(measured)
        try:
            since = 0
            while True:
                changed.clear()
                lives = federation.lives(row.id)  # before the rest: what ends meanwhile is told once more
                info = self._info(federation.find(row.id))
                rounds = await federation.rounds(row.id, since)
                yield runs_pb2.WatchResponse(run=info, rounds=self._rounds(row, rounds))
                if not lives:
                    return
                # An evaluation of the model before the open round may still come in.
                since = max(0, max((r.number for r in rounds), default=0) - 2)
                await changed.wait()
                await asyncio.sleep(_WATCH_EVERY)  # what changes together is told together
                since, heard = min([since, *measured[heard:]]), len(measured)
        finally:
            if driver:
                driver.unwatch(changed)

    async def control(self, request: runs_pb2.ControlRequest, context: Context) -> runs_pb2.ControlResponse:
        self._check_owner(request.run, context, request.verb[:20])
        row = await self._federation.control(
            request.run, request.verb, request.reason, min(request.beyond, _MOST_ROUNDS // 2)
        )
        return runs_pb2.ControlResponse(run=self._info(row))

    def _check_owner(self, run: str, context: Context, verb: str) -> None:
        """Denied unless the run is the caller's."""
        row = self._federation.find(run)
        if not context.peer.may_control(row.operator):
            whose = f"operator {row.operator!r}" if row.operator else "nobody, being older than operators are"
            raise Denied(f"run {row.name!r} belongs to {whose}; ask them, or an admin, to {verb} it")

    async def measure(self, request: runs_pb2.MeasureRequest, context: Context) -> runs_pb2.MeasureResponse:
        self._check_owner(request.run, context, "measure")
        if not 1 <= request.round <= _MOST_ROUNDS:
            raise NotFound(f"round {request.round} made no model; rounds are numbered from 1")
        await self._federation.measure(request.run, request.round, dict(request.metrics))
        return runs_pb2.MeasureResponse(run=self._info(self._federation.find(request.run)))

    async def export(
        self, request: runs_pb2.ExportRequest, context: Context
    ) -> AsyncIterator[runs_pb2.ExportResponse]:
        federation = self._federation
        row = federation.find(request.run)
        number = request.round if request.HasField("round") else None
        if number is not None and number > _MOST_ROUNDS:
            raise NotFound(f"there is no round {number}")
        version = await federation.db(federation.store.model_at, row.id, number)
        window, size = await federation.db(federation.store.window, version.digest)
        offset = 0
        while offset < size:
            data = bytes(await federation.db(window, offset, _PIECE))
            offset += len(data)
            yield runs_pb2.ExportResponse(data=data, round=version.round, size=size)

    async def audit(
        self, request: runs_pb2.AuditRequest, context: Context
    ) -> AsyncIterator[runs_pb2.AuditResponse]:
        federation = self._federation
        entries = federation.store.audit(federation.find(request.run).id)
        while page := await federation.db(lambda: list(islice(entries, _AUDIT_PAGE))):
            yield runs_pb2.AuditResponse(
                entries=[runs_pb2.AuditEntry(number=e.number, entry=e.text, hash=e.hash) for e in page]
            )

    async def replay(
        self, request: runs_pb2.ReplayRequest, context: Context
    ) -> AsyncIterator[runs_pb2.ReplayResponse]:
        federation = self._federation
        number = request.round if request.HasField("round") else None
        if number is not None and number > _MOST_ROUNDS:
            raise NotFound(f"there is no round {number}")
        found = replay(federation.store, federation.find(request.run), number)
        while (one := await federation.db(next, found, None)) is not None:
            yield runs_pb2.ReplayResponse(round=one.round, verdict=one.verdict, detail=one.detail)

    async def updates(
        self, request: runs_pb2.UpdatesRequest, context: Context
    ) -> AsyncIterator[runs_pb2.UpdatesResponse]:
        federation = self._federation
        row = federation.find(request.run)
        number = request.round if request.HasField("round") else None
        if number is not None and number > _MOST_ROUNDS:
            raise NotFound(f"there is no round {number}")
        client = request.client if request.HasField("client") else None
        secure = RunSpec.decode(row.spec).secure
        after = (0, "")
        while True:
            read = partial(
                queries.sent, run=row.id, round_=number, client=client, after=after, most=_UPDATES_PAGE
            )
            page = await federation.db(federation.store.database.read, "updates", read)
            if not page:
                return
            yield runs_pb2.UpdatesResponse(updates=[_update(u, secure) for u in page])
            after = (page[-1].round, page[-1].client)

    def _info(self, row: RunRow) -> runs_pb2.RunInfo:
        row = self._federation.current(row)
        spec = RunSpec.decode(row.spec)
        return runs_pb2.RunInfo(
            id=row.id, name=row.name, status=row.status, reason=row.reason, rounds_closed=row.closed,
            rounds=spec.rounds, created_at=row.created_at, ended_at=row.ended_at or 0.0,
            strategy=recipe.show(spec.strategy), devices=len(self._federation.attached(row.id)),
            waiting_for=self._federation.waiting_for(row.id), aggregation=spec.aggregation,
        )  # fmt: skip

    def _rounds(self, row: RunRow, rounds: Iterable[RoundRow]) -> list[runs_pb2.RoundInfo]:
        """The rounds as stored; and of the one that is open, who is still out."""
        spec, driver = RunSpec.decode(row.spec), self._federation.drivers.get(row.id)
        now = driver.run.round if driver is not None else None
        found = []
        for r in rounds:
            info = _round(r, spec)
            if now is not None and not now.over and now.terms.round == r.number and now.stage == r.stage:
                info.awaited.extend(sorted(now.collecting.awaited) if now.collecting else ())
                info.attempt = now.masking.attempt + 1 if now.stage in MASKED_STAGES else 0
            found.append(info)
        return found


def _round(r: RoundRow, spec: RunSpec) -> runs_pb2.RoundInfo:
    bits = r.bits
    if spec.secure and r.kind == "train":  # all masked updates of a round have one size
        bits = 8.0 * max((p.size for p in r.participants), default=0) / spec.model.size
    return runs_pb2.RoundInfo(
        number=r.number, kind=r.kind, status=r.stage, reason=r.reason, opened_at=r.opened_at,
        asked_at=r.asked_at or 0.0, folding_at=r.folding_at or 0.0, closed_at=r.ended_at or 0.0,
        participants=[
            runs_pb2.ParticipantInfo(
                client=p.client, status=p.status, reason=p.reason, answered_at=p.answered_at or 0.0,
                bytes_up=p.size, examples=p.examples, partial=p.partial,
            )
            for p in r.participants
        ],
        metrics=r.metrics, bytes_up=r.bytes_up, bytes_down=r.bytes_down, model_digest=r.model,
        head=r.head, bits=bits, nmse=r.nmse, upload_s=r.upload_s, fold_s=r.fold_s, secure=spec.secure,
        joules=r.joules, metered=r.metered,
    )  # fmt: skip


def _update(u: SentRow, secure: bool) -> runs_pb2.UpdateInfo:
    return runs_pb2.UpdateInfo(
        round=u.round, client=u.client, digest=u.digest, codec=u.codec, bytes=u.size, at=u.at, status=u.status,
        reason=u.reason, kept=u.kept, upload_s=u.upload_s, head=convert.head_to(u.head),
        stats=convert.stats_to(u.stats), secure=secure,
    )  # fmt: skip
