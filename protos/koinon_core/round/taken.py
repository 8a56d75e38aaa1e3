"""Work that a device of a buffered round was given, perhaps in an earlier one.

A buffered round (FedBuff's buffer: Nguyen et al. 2022, arXiv:2106.06639) does not end the work of devices that have not
answered yet: they go on, from the model that they were given, and answer in whichever round is open then.
"""

from dataclasses import dataclass

from koinon_core.round.terms import Terms

__all__ = ["Taken"]


@dataclass(frozen=True, slots=True)
class Taken:
    """What `client` works on: the round that gave it the work, how many models the run had made by then (`version`),
    that round's terms, model and strategy's part for devices by digest, and since when (seconds since 1970)."""

    client: str
    round: int
    version: int
    terms: str
    model: str
    down: str
    since: float

    @classmethod
    def of(cls, client: str, terms: Terms, at: float) -> "Taken":
        """The work that a round with these terms gives."""
        return cls(client, terms.round, terms.version, terms.digest, terms.model, terms.down, at)
