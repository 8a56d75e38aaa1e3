"""What of a run is kept after a round, by the run's policy: pure arithmetic over round numbers."""

from dataclasses import dataclass, replace

from koinon_coordinator.store import ModelVersion, Scrub
from koinon_core.flow.best import Found
from koinon_core.spec import RunSpec

__all__ = ["Kept"]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept now: rounds whose updates are there, and versions whose models are, oldest first."""

    rounds: tuple[int, ...] = ()
    versions: tuple[ModelVersion, ...] = ()

    def with_round(self, number: int) -> "Kept":
        return self if number in self.rounds else replace(self, rounds=(*self.rounds, number))

    def with_version(self, version: ModelVersion) -> "Kept":
        return replace(self, versions=(*self.versions, version))

    def after(
        self, spec: RunSpec, number: int, best: Found | None = None, at_work: int | None = None, *,
        summed: bool = False,
    ) -> tuple["Kept", Scrub]:  # fmt: skip
        """What is still kept once round `number` is over, and what goes. The best model so far stays, and so does
        whatever the work of round `at_work` and later ones stands on, which some devices still have. `summed` says that
        no update is in a round that is open: then nothing masked is of use, whichever round gave its device the work.

        The updates of a round are of use only together with the state that it stood on, so both go together. The
        newest model and its state always stay. Rounds that made no model leave gaps: what is kept for a round is the
        version that it stood on, however old that is.
        """
        needed = number if at_work is None else at_work - 1
        # What a round sums may have been asked for in earlier ones.
        older = min(needed, number - spec.updates_kept - (spec.reach if spec.updates_kept else 0))
        updates = tuple(n for n in self.rounds if n <= (number if spec.secure and summed else older))
        rounds = tuple(n for n in self.rounds if n not in updates)
        states = tuple(v for v in self._unused(older) if v.state or v.down or v.delta)
        unused = self._unused(min(needed, number - spec.models_kept))
        models = tuple(v for v in unused if best is None or v.round != best.round)
        bare = {v.round for v in states}
        versions = tuple(
            replace(v, state="", down="", delta="", base="") if v.round in bare else v
            for v in self.versions
            if v not in models
        )
        return Kept(rounds, versions), Scrub(updates, states, models)

    def _unused(self, number: float) -> tuple[ModelVersion, ...]:
        """Versions on which no round after `number` stands."""
        return tuple(v for v in self.versions if v.round <= number)[:-1]
