"""What a device says of the cost of its part in a round, as far as its owner lets it.

In an open run all of it is said. In a secure run nothing is, for it tells of the device's data: training takes seconds
and joules in proportion to the examples, so that whoever knows what one example takes knows how many there are. An
owner who does not mind names in device.toml what may be said all the same (`clear`): "energy", "seconds", "bytes".
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from koinon.policy import Policy
from koinon_core.costs import LONGEST_TEXT, Phase, Spent
from koinon_core.errors import BadBlob
from koinon_core.wire import convert
from koinon_core.wire.v1 import fleet_pb2 as pb

__all__ = ["allowed", "message"]

_log = logging.getLogger("koinon")


def allowed(spent: Spent, policy: Policy, secure: bool) -> Spent | None:
    """What of these costs may be said of a run, whose sums are `secure` or not; None if nothing may, or is known.

    Seconds and joules are proportional to how many examples a device has, and bytes of a masked update tell nothing of
    its content: each is said in a secure run where the owner listed it, and only then.
    """
    clear = {"energy", "seconds", "bytes"} if not secure else set(policy.clear)
    phases = {name: _allowed(phase, clear) for name, phase in spent.phases.items()}
    if "bytes" not in clear:
        spent = replace(spent, bytes_up=None, bytes_down=None)
    if "energy" not in clear:
        spent = replace(spent, scope="", source="")
    spent = replace(spent, phases={name: phase for name, phase in phases.items() if phase != Phase()})
    return spent if spent.phases or spent.bytes_up is not None or spent.bytes_down is not None else None


def _allowed(phase: Phase, clear: set[str]) -> Phase:
    if "energy" not in clear:
        phase = replace(phase, joules=None, above_idle=None, missing=None)
    if "seconds" not in clear:
        phase = replace(phase, seconds=None)
    return phase


def message(
    run: str, round_: int, costs: Mapping[str, Any], policy: Policy, secure: bool
) -> pb.DeviceMessage | None:
    """The message that says what a device's part in `round_` has cost; None where there is nothing that it may say.

    `costs` are a meter's: {"phases": {"train": {"joules": J, "above_idle": J, "seconds": s, "missing": share}, ...},
    "scope": ..., "source": ..., "bytes_up": n, "bytes_down": n}, where None, or nothing at all, is not known.
    What no device can have measured is not said either, and costs nobody the round.
    """
    spent = allowed(Spent.from_json(costs), policy, secure)
    if spent is None:
        return None
    spent = replace(spent, scope=spent.scope[:LONGEST_TEXT], source=spent.source[:LONGEST_TEXT])
    try:
        spent.check()
    except BadBlob as error:
        _log.warning("what round %d of %s has cost is not said: %s", round_, run, error)
        return None
    return pb.DeviceMessage(spent=convert.spent_to(run, round_, spent))
