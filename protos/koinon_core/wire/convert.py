"""Protobuf messages to and from the core's values. Nothing else knows both.

Readers raise RemoteProtocolError for what no honest peer sends.
"""

from collections.abc import Iterable, Mapping

from koinon_core import PROTOCOL, __version__
from koinon_core.canonical import sha256
from koinon_core.condition import Condition
from koinon_core.costs import Phase, Spent
from koinon_core.errors import KoinonError, RemoteProtocolError, from_code
from koinon_core.history import Standing
from koinon_core.round.effects import Verdict
from koinon_core.run.pace import Pace
from koinon_core.selection.traits import CAPABILITIES
from koinon_core.update import Head, Stats
from koinon_core.wire.sizes import INLINE, MESSAGE_LIMIT
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = [
    "INLINE", "MESSAGE_LIMIT", "able_from", "able_to", "check_hello", "condition_from", "condition_to", "content",
    "envelope", "head_from", "head_to", "hello", "joined", "links_from", "links_to", "pace", "receipt", "spent_from",
    "spent_to", "standing", "standing_from", "stats_from", "stats_to", "trouble", "trouble_from", "verdict_from",
]  # fmt: skip

_VERDICTS: dict[Verdict, pb.Verdict] = {
    "STAGED": pb.VERDICT_STAGED,
    "COUNTED": pb.VERDICT_COUNTED,
    "NOT_COUNTED": pb.VERDICT_NOT_COUNTED,
}


_MOST_ABLE = (1 << 32) - 1


def hello(
    client: str, instance: str, boot: int = 0, able: Mapping[str, int] | None = None,
    condition: Condition | None = None,
) -> pb.Hello:  # fmt: skip
    """The greeting of this version; `able` is what the device says of itself (koinon_core.selection.traits), and
    `condition` how it is."""
    said = pb.Able(**able) if able else None
    now = condition_to(condition) if condition is not None else None
    return pb.Hello(
        protocol=PROTOCOL, client=client, instance=instance, version=__version__, boot=boot, able=said,
        condition=now,
    )  # fmt: skip


def able_from(message: pb.Able) -> dict[str, float]:
    """What a device says of itself, as far as it can be; what it does not say is 0."""
    return {name: float(min(getattr(message, name), _MOST_ABLE)) for name in CAPABILITIES}


def able_to(able: Mapping[str, float]) -> pb.Able:
    return pb.Able(**{name: int(value) for name, value in able.items()})


def condition_to(condition: Condition) -> pb.Condition:
    return pb.Condition(**condition.to_json())


def condition_from(message: pb.Condition) -> Condition:
    """How a device says that it is. RemoteProtocolError for what none can be like."""
    found = Condition(
        heat=message.heat if message.HasField("heat") else None,
        disk_free_mb=message.disk_free_mb if message.HasField("disk_free_mb") else None,
        battery=message.battery if message.HasField("battery") else None,
        state=message.state, power_mode=message.power_mode, board=message.board,
    )  # fmt: skip
    found.check()
    return found


def check_hello(message: pb.Hello) -> None:
    """Raise RemoteProtocolError unless this side can talk with the sender."""
    if message.protocol != PROTOCOL:
        raise RemoteProtocolError(
            f"{message.client[:64]!r} (Koinon {message.version[:32]}) speaks protocol {message.protocol}, this "
            f"coordinator (Koinon {__version__}) speaks {PROTOCOL}; install the same version on both"
        )
    if not 1 <= len(message.client) <= 128 or not message.client.isprintable():
        raise RemoteProtocolError("a device needs a name of 1 to 128 printable characters")
    if not 1 <= len(message.instance) <= 64:
        raise RemoteProtocolError("a device must say which instance it is")


def content(data: bytes, digest: str | None = None) -> pb.Content:
    """`data` by its digest, inline if it is small."""
    return pb.Content(
        digest=digest or sha256(data), size=len(data), inline=data if len(data) <= INLINE else b""
    )


def envelope(message: pb.CoordinatorMessage) -> bytes:
    """One message for the stream, encoded; several such may be joined byte to byte."""
    return pb.AttendResponse(messages=[message]).SerializeToString()


def joined(run: str, spec: bytes) -> bytes:
    """What a device hears when a run lets it in."""
    return envelope(pb.CoordinatorMessage(joined=pb.Joined(run=run, spec=spec)))


def standing(run: str, where: Standing, links: Mapping[int, str]) -> pb.CoordinatorMessage:
    """Where a run stands, as a device that recalls it is told."""
    return pb.CoordinatorMessage(
        standing=pb.Standing(
            run=run, round=where.round, head=where.head, recovery=where.recovery, links=links_to(links)
        )
    )


def standing_from(message: pb.Standing) -> Standing:
    return Standing(round=message.round, head=message.head, recovery=message.recovery)


def links_to(links: Mapping[int, str]) -> list[pb.Link]:
    """Links of a run's history, by round."""
    return [pb.Link(round=n, digest=bytes.fromhex(links[n])) for n in sorted(links)]


def links_from(links: Iterable[pb.Link]) -> dict[int, str]:
    return {link.round: link.digest.hex() for link in links}


def head_to(head: Head) -> pb.Head:
    return pb.Head(
        examples=head.examples, totals=head.totals, training=head.training, evaluation=head.evaluation,
        evaluation_examples=head.evaluation_examples, steps=head.steps, partial=head.partial,
    )  # fmt: skip


def head_from(message: pb.Head) -> Head:
    return Head(
        examples=message.examples, totals=dict(message.totals), training=dict(message.training),
        evaluation=dict(message.evaluation), evaluation_examples=message.evaluation_examples,
        steps=message.steps, partial=message.partial,
    )  # fmt: skip


def stats_to(stats: Stats) -> pb.Stats:
    return pb.Stats(parameters=stats.parameters, nmse=stats.nmse, norm=stats.norm, encode_s=stats.encode_s)


def stats_from(message: pb.Stats) -> Stats:
    return Stats(
        parameters=message.parameters, nmse=message.nmse, norm=message.norm, encode_s=message.encode_s
    )


def spent_to(run: str, round_: int, spent: Spent) -> pb.Spent:
    """What a device's part in a round has cost."""
    value = spent.to_json()
    phases = [pb.Phase(name=name, **figures) for name, figures in value.pop("phases").items()]
    return pb.Spent(run=run, round=round_, phases=phases, **value)


def spent_from(message: pb.Spent) -> Spent:
    """RemoteProtocolError for costs that no device can have had."""
    found = Spent(
        phases={p.name: _phase_from(p) for p in message.phases}, scope=message.scope, source=message.source,
        bytes_up=message.bytes_up if message.HasField("bytes_up") else None,
        bytes_down=message.bytes_down if message.HasField("bytes_down") else None,
    )  # fmt: skip
    if len(found.phases) != len(message.phases):
        raise RemoteProtocolError("the costs of a round name each phase once")
    found.check()
    return found


def _phase_from(message: pb.Phase) -> Phase:
    return Phase(
        joules=message.joules if message.HasField("joules") else None,
        above_idle=message.above_idle if message.HasField("above_idle") else None,
        seconds=message.seconds if message.HasField("seconds") else None,
        missing=message.missing if message.HasField("missing") else None,
    )


def receipt(run: str, round_: int, verdict: Verdict, reason: str) -> pb.CoordinatorMessage:
    return pb.CoordinatorMessage(
        receipt=pb.Receipt(run=run, round=round_, verdict=_VERDICTS[verdict], reason=reason)
    )


def verdict_from(message: pb.Receipt) -> Verdict:
    for name, number in _VERDICTS.items():
        if number == message.verdict:
            return name
    raise RemoteProtocolError(f"the coordinator sent a receipt with verdict {message.verdict}")


def pace(run: str, told: Pace) -> pb.CoordinatorMessage:
    """When a device that visits shall come back."""
    return pb.CoordinatorMessage(
        pace=pb.Pace(run=run, after_s=told.after, jitter_s=told.jitter, stay_s=told.stay)
    )


def trouble(run: str, error: KoinonError) -> pb.CoordinatorMessage:
    """An error, as the device will raise it."""
    return pb.CoordinatorMessage(trouble=pb.Trouble(run=run, code=error.code, message=str(error)))


def trouble_from(message: pb.Trouble) -> KoinonError:
    return from_code(message.code, message.message)
