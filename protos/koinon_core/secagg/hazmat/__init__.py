"""The primitives of secure aggregation: bytes in, bytes out, and no opinion about the protocol above them.

    agree    two devices, one secret: X25519                                             (RFC 7748)
    derive   a key for each purpose: HKDF-SHA256                                         (RFC 5869)
    sign     who said it: Ed25519                                                        (RFC 8032)
    seal     for one reader: AES-256-GCM under a key that is used once                   (SP 800-38D)
    stream   masks: the AES-256 keystream, added to lanes where they lie
    field    GF(2^16) in two tables
    shamir   a secret in n shares, any t of which give it back                           (Shamir 1979)
    graph    who shares with whom, and how large t must be                               (Bell et al. 2020)
    merkle   one digest of a list, and short proofs of what is in it                     (RFC 6962)

Hazardous alone: each promises what it says and no more. That a key is used once, that a point was enrolled, that
two lists are the same list is for the recipes in `koinon_core.secagg` to see to; nothing else should import from
here. Randomness comes in as `Entropy`; table lookups are not constant-time, so none of this is for a machine that
is shared with whoever may not know the secrets.
"""
