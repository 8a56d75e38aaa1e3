"""How commands print what a round has cost. What nobody measured is not printed, and is never a 0."""

from koinon.cli.output import figure
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as fleet
from koinon_core.wire.v1 import runs_pb2 as pb

__all__ = ["energy", "of_device", "of_round"]


def energy(joules: float) -> str:
    """Joules for people."""
    for unit in ("J", "kJ", "MJ"):
        if abs(joules) < 999.5 or unit == "MJ":
            return f"{joules:.3g} {unit}"
        joules /= 1000
    raise AssertionError("unreachable")


def of_round(r: pb.RoundInfo) -> str:
    """The joules of a round, and of how many of its devices they are."""
    return f"{energy(r.joules)} ({r.metered} of {len(r.participants)})" if r.HasField("joules") else ""


def of_device(said: fleet.Spent) -> str:
    """What one device's part has cost: by phase, then what the joules are of and the share of time without a figure."""
    spent = convert.spent_from(said)
    phases = []
    for name, phase in spent.phases.items():
        joules = energy(phase.joules) if phase.joules is not None else ""
        seconds = f"{figure(phase.seconds)} s" if phase.seconds is not None else ""
        if joules or seconds:
            phases.append(" ".join(filter(None, (name, joules, seconds))))
    if spent.joules is None:
        return ", ".join(phases)
    missing = f"{spent.missing:.0%} missing" if spent.missing else ""
    about = "; ".join(filter(None, (spent.scope, missing)))
    return ", ".join(phases) + (f" ({about})" if about else "")
