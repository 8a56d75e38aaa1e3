"""Admission: whether what a device sent may become a fact of its round.

An update is checked against the round's terms, the run's schema, its grid and its bound before the machine hears of
it. One that is refused is an incident, and costs nobody but its sender.
"""

from dataclasses import dataclass, field, replace

from koinon_coordinator.book import Item
from koinon_coordinator.closing import Plan, open_update
from koinon_coordinator.store import Incident, Part, PayloadRow, Store, UpdateRow
from koinon_core import codec
from koinon_core import run as runs
from koinon_core.canonical import sha256
from koinon_core.codec import Reader
from koinon_core.errors import BadBlob, RemoteProtocolError
from koinon_core.fold import check_codecs, verify
from koinon_core.round.machine import Round
from koinon_core.round.terms import Terms
from koinon_core.run import Run
from koinon_core.secagg.adverts import Trust
from koinon_core.secure.sessions import Heard, Sessions, masked_size
from koinon_core.tiles import Held, Source
from koinon_core.update import Head, Stats
from koinon_core.wire.convert import INLINE

__all__ = ["Answer", "Voice", "admit", "check_upload", "hear"]

_MASKED = "masked"
_LONGEST = 4 << 20  # bytes of what a device says in a session: shares for all of some thousand neighbours


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a device sent for a round. `data` is the update's bytes where they came along, else they were uploaded;
    `stats` is what it measured of them."""

    client: str
    round: int
    terms: str
    digest: str
    size: int
    data: bytes
    head: Head
    stats: Stats = field(default_factory=Stats)


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """What a device said in a collection of a secure round. `digest` and `size` are those of the masked update, whose
    bytes are `data` where they came along."""

    client: str
    round: int
    attempt: int
    collection: str
    terms: str
    payload: bytes
    digest: str = ""
    size: int = 0
    data: bytes = b""


def admit(store: Store, plan: Plan, run: Run, answer: Answer, now: float) -> Item:
    """The item that the run's next turn takes. May read the whole update: call it where that may block."""
    client, number = answer.client, answer.round
    if not run.wants(client, number):
        fact, odd = runs.Answered(now, client, number, answer.digest), _odd(run, client, answer.digest)
        return Item(
            fact, incident=Incident(now, client, number, "REFUSED", f"refused: {odd}") if odd else None
        )
    assert run.round is not None
    try:
        update = _check(store, plan, run.round, answer, now)
    except (BadBlob, RemoteProtocolError) as error:
        reason = f"refused: {error}"
        return Item(
            runs.Resigned(now, client, number, "REFUSED", reason),
            incident=Incident(now, client, number, error.code, reason),
        )
    return Item(runs.Answered(now, client, number, answer.digest), update=update)


def hear(store: Store, run: Run, sessions: Sessions | None, voice: Voice, trust: Trust, now: float) -> Item:
    """The same for what a device said in a secure round; `sessions` are those of the round, if one is open."""
    client, number = voice.client, voice.round
    fact = runs.Voiced(
        now, client, number, voice.attempt, voice.collection, voice.digest or sha256(voice.payload)
    )
    if sessions is None or not run.wants(client, number, voice.collection, voice.attempt):
        return Item(fact)
    terms = sessions.terms(client)
    try:
        if voice.terms != terms.digest:
            raise RemoteProtocolError("what was said is about other terms than this round's")
        if len(voice.payload) > _LONGEST:
            raise BadBlob(f"{len(voice.payload)} bytes are more than a device has to say in a session")
        heard = sessions.check(client, voice.payload, trust)
        update = _masked(store, terms, voice, heard, now) if voice.collection == _MASKED else None
    except (BadBlob, RemoteProtocolError) as error:
        reason = f"refused: {error}"
        return Item(
            runs.Resigned(now, client, number, "REFUSED", reason),
            incident=Incident(now, client, number, error.code, reason),
        )
    fact = replace(fact, digest=heard.digest, missing=heard.missing)
    payload = PayloadRow(number, voice.attempt, voice.collection, client, voice.payload)
    incident = None
    if heard.missing:
        names = ", ".join(sorted(heard.missing)[:5])
        unread = f"could not read the shares of {len(heard.missing)} devices ({names})"
        incident = Incident(now, client, number, "UNREADABLE", unread)
    return Item(fact, update=update, payload=payload, incident=incident, keys=heard.keys)


def _masked(store: Store, terms: Terms, voice: Voice, heard: Heard, now: float) -> UpdateRow:
    """The row of a masked update: nothing of what it is made of is known, and nothing is asked."""
    said = heard.masked
    assert said is not None
    if (voice.digest, voice.size) != (said.sha256, said.size):
        raise BadBlob("the masked update is not the one that its device signed")
    part = Part(terms.run, voice.round, voice.client)
    data = voice.data if len(voice.data) == said.size else None
    if data is not None:
        if len(data) > INLINE or sha256(data) != said.sha256:
            raise BadBlob("the masked update's bytes are not what its digest says; send them again")
    elif not store.uploads.has(part, said.sha256):
        raise BadBlob("the masked update's bytes never arrived; upload them before they are handed in")
    took = 0.0 if data is not None else store.uploads.seconds(part, said.sha256)
    return UpdateRow(
        voice.client, voice.round, said.sha256, said.size, terms.codec, Head(), now, data, upload_s=took
    )


def check_upload(plan: Plan, size: int, terms: Terms | None = None) -> None:
    """Raise BadBlob for an update larger than this run's can be, or than those of a round with these terms are."""
    if terms is not None and terms.aggregation == "secure":
        if size > masked_size(terms):
            raise BadBlob(f"an upload of {size} bytes is refused: a masked update has {masked_size(terms)}")
        return
    limit = codec.size_limit(plan.layout.update)
    if size > limit:
        raise BadBlob(f"an update of {size} bytes is refused: this run's model needs at most {limit}")


def _check(store: Store, plan: Plan, r: Round, answer: Answer, now: float) -> UpdateRow:
    terms, work = r.terms, r.taken.get(answer.client)
    if answer.terms != (work.terms if work is not None else terms.digest):
        raise RemoteProtocolError("the update was made under other terms than this round's")
    trained = terms.kind == "train"
    answer.head.check(
        trained=trained, max_examples=terms.max_examples, totals=plan.strategy.totals(), whole=plan.spec.whole
    )
    answer.stats.check(most=sum(f.size for f in plan.layout.update) if trained else 0)
    if not trained and (answer.digest or answer.size or answer.data):
        raise BadBlob("an evaluation has numbers only, and this one came with bytes")
    if len(answer.data) > INLINE:
        raise BadBlob(f"an update of {len(answer.data)} bytes must be uploaded, not sent in the message")
    check_upload(plan, answer.size)
    inline = answer.data if answer.size and len(answer.data) == answer.size else None
    update = UpdateRow(
        answer.client, answer.round, answer.digest, answer.size, terms.codec, answer.head, now, inline,
        stats=answer.stats,
    )  # fmt: skip
    if trained:
        _check_bytes(store, plan, terms, update, work.model if work is not None else terms.model)
        if inline is None:
            part = Part(terms.run, answer.round, answer.client)
            update = replace(update, upload_s=store.uploads.seconds(part, answer.digest))
    return update


def _check_bytes(store: Store, plan: Plan, terms: Terms, update: UpdateRow, began: str) -> None:
    """`began` is the digest of the model that the update was made from."""
    if update.data is not None:
        if sha256(update.data) != update.digest:
            raise BadBlob("the update's bytes are not what its digest says; send them again")
    elif not store.uploads.has(Part(terms.run, update.round, update.client), update.digest):
        raise BadBlob("the update's bytes never arrived; upload them before they are handed in")
    reader, layout = open_update(store, plan, terms.run, update), plan.layout.under(terms)
    check_codecs(reader, layout.how)
    model: Source = Held({})
    if any(way.rule == "equal" for way in layout.how.values()):
        model = Reader(*store.window(began), plan.spec.model, "the model")
    verify(reader, layout.update, layout.how, model)


def _odd(run: Run, client: str, digest: str) -> str:
    """What the operator should know of an answer that the open round did not wait for; an honest device's second
    try is nothing odd."""
    r = run.round
    if r is None or not r.update.asked:
        return ""
    if client not in r.update.asked:
        return "an update came from this device, which was not asked in this round"
    return "" if r.update.heard.get(client, digest) == digest else "a second, different update for this round"
