"""Sums of updates of which nobody sees a single one: secure aggregation, for both sides, without a clock or a network.

    config      what devices agree to; binds everything below                           encoded, canonical
    statements  every byte string that is hashed, signed or derived for: the definition
    adverts     a device's keys of one attempt, signed by its long-term identity         R0
    cohort      groups, order and graph, from the digests of advertisements alone
    roster      a device's place, worked out and checked by itself                       R1
    sealing     shares of a device's secrets, sealed for one neighbour each              R1
    pads        the masks that hide an update                                            R2
    packing     masked lanes as bytes                                                    R2
    masker      the device's half, from its first key to the last share                  R0 to R4
    unmasker    the coordinator's half: what it tells, and whether what it hears is sound
    recovery    the masks that are left in the sum                                       after R4
    messages    what comes from others, read with limits

The protocol is SecAgg+ (Bell et al. 2020, https://eprint.iacr.org/2020/704) with the signed keys and the consistency
round of Bonawitz et al. 2017 (https://eprint.iacr.org/2017/281). What a session hides is whose an update is, not what
the sum says; against that only noise helps. It is safe against a coordinator that lies, unless that has enrolled false
devices: whom to believe is `Trust`'s to say. Primitives are in `hazmat`.
"""

from koinon_core.secagg.adverts import Identity, Trust
from koinon_core.secagg.cohort import Cohort, form
from koinon_core.secagg.config import Config, Lane
from koinon_core.secagg.hazmat.agree import Entropy
from koinon_core.secagg.masker import PHASES, Masker
from koinon_core.secagg.packing import PackedLayout, pack, unpack
from koinon_core.secagg.pads import Pads
from koinon_core.secagg.recovery import Recovery, Unrecoverable
from koinon_core.secagg.unmasker import Masked, Session, check_advert

__all__ = [
    "PHASES", "Cohort", "Config", "Entropy", "Identity", "Lane", "Masked", "Masker", "PackedLayout", "Pads", "Recovery",
    "Session", "Trust", "Unrecoverable", "check_advert", "form", "pack", "unpack",
]  # fmt: skip
