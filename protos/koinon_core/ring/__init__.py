"""Updates as integers modulo 2^b, so that masks can hide each one and vanish in the sum.

    clip        a group's Euclidean norm to at most C, then times weight / 2^k
    rotate      pad, random signs, Walsh-Hadamard over strided blocks of 4096: all coordinates alike  (rotation)
    subset      one rotated coordinate in 1, 2, 4 or 8, the same for all devices; the sum times as many
    round       to steps of 2^-e with a dither that the coordinator subtracts, or privately          (dither)
    wrap        modulo 2^b, in lanes of u8 to u64, beside exact lanes and the accounts         (lanes, encode)
    add         lanes as they arrive, in place; b fits the sum, not a device                   (lanes, sizing)
    read        minus the dithers, rotated back in int64: the same bytes everywhere                  (decode)
    check       how many coordinates wrapped around; more than stated, and the round has no model    (checks)

All public randomness follows from the round's terms, run and device (seeds); config is what may be asked for, limits
what a device's owner allows.
The recipe is Bonawitz et al. 2019, "Federated learning with autotuned communication-efficient secure aggregation"
(arXiv:1912.00131); the shared subset under a ring Chen et al. 2022, "The fundamental price of secure aggregation in
differentially private federated learning" (arXiv:2203.03761). What it cannot do: the largest value (MAX), or what
is each device's own (LOCAL), which has no group. Masks and noise are not here.
"""

from koinon_core.ring.checks import Wraps
from koinon_core.ring.config import Group, Ring, Section
from koinon_core.ring.decode import Report, decode
from koinon_core.ring.encode import Device, encode
from koinon_core.ring.lanes import Sum
from koinon_core.ring.limits import Limits
from koinon_core.ring.rotation import Read, Write
from koinon_core.ring.seeds import Seeds
from koinon_core.ring.sizing import LEVELS, Size, bits_for, exact_bits, suggest, suggest_exact

__all__ = [
    "LEVELS", "Device", "Group", "Limits", "Read", "Report", "Ring", "Section", "Seeds", "Size", "Sum", "Wraps",
    "Write", "bits_for", "decode", "encode", "exact_bits", "suggest", "suggest_exact",
]  # fmt: skip
