"""The gate's decision: from what was found, and what is remembered, to a verdict."""

from koinon_edge.gate.found import Found
from koinon_edge.gate.predicates import QUESTIONS, Memory, remember
from koinon_edge.gate.verdict import Predicate, Verdict
from koinon_edge.settings import GateSettings

__all__ = ["decide"]


def decide(asked: GateSettings, found: Found, before: Memory, *, working: bool) -> tuple[Verdict, Memory]:
    """Whether the device may work, and what to remember of it. `working`: there is work under way, paused or not."""
    memory = remember(asked, found, before, working=working)
    answers = tuple(question(asked, found, memory, working) for question in QUESTIONS)
    closing = next((p for p in answers if _closes(p, asked)), None)
    verdict = Verdict(closing is None, answers, closing.why if closing else "", _note(answers, found))
    return verdict, memory


def _closes(predicate: Predicate, asked: GateSettings) -> bool:
    return predicate.verdict == "no" or (predicate.verdict == "unknown" and asked.unknown == "refuse")


def _note(answers: tuple[Predicate, ...], found: Found) -> str:
    """That sensors of heat are there and none answers, and that the clock went back: neither may go unsaid."""
    blind = found.heat.value is None and found.heat.why != "no sensor"
    heat = next(p.why for p in answers if p.name == "heat")
    return "; ".join(([heat] if blind else []) + ([found.spent.note] if found.spent.note else []))
