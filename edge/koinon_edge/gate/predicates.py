"""The questions of the gate, each by itself: from what was found to yes, no or unknown. Nothing is read here.

Two have a memory, so that a device does not flap: work that was too hot goes on only well below that, and a battery
that was too low must have some more than what is asked for. A `why` names what is asked for and not what was found,
which is in `value`: it stays the same for as long as it holds, and is said and written down once.
"""

from dataclasses import dataclass

from koinon_edge.gate.found import Found
from koinon_edge.gate.verdict import Predicate
from koinon_edge.probe import Reading
from koinon_edge.settings import GateSettings

__all__ = ["QUESTIONS", "Memory", "remember"]

_MORE = 5.0  # percent of a battery
_BEFORE = "before work only"


@dataclass(frozen=True, slots=True)
class Memory:
    """The gate was closed because it was too `hot`, or the battery too `low`, and is not open again for that."""

    hot: bool = False
    low: bool = False


def remember(asked: GateSettings, found: Found, before: Memory, *, working: bool) -> Memory:
    """What there is to remember after this look. What cannot be read changes nothing."""
    heat, level = found.heat.value, found.battery.level.value
    hot, low = before.hot, before.low
    if heat is not None:
        hot = (working and heat >= asked.heat_pause) or (hot and heat >= asked.heat_resume)
    if found.battery.mains or not found.battery.present:
        low = False
    elif level is not None:
        low = level < asked.battery_min or (low and level < _anew(asked))
    return Memory(hot, low)


def _anew(asked: GateSettings) -> float:
    return min(100.0, asked.battery_min + _MORE)


# -- power and heat -------------------------------------------------------------------------------------------


def _power(asked: GateSettings, found: Found, memory: Memory, _working: bool) -> Predicate:
    fed, level = found.battery, found.battery.level
    least = _anew(asked) if memory.low else asked.battery_min
    anew = f" ({asked.battery_min:g} %, and {_MORE:g} % more after it was too low)" if memory.low else ""
    threshold = "on mains" if asked.mains else f"on mains, or a battery of {least:g} %{anew}"
    if fed.mains or not fed.present:  # whatever a socket says: without a battery it could not run otherwise
        return Predicate("power", "on mains" + ("" if fed.present else ", no battery"), threshold, "yes")
    value = f"{'on its battery' if fed.mains is False else 'perhaps on its battery'}, {level}"
    if asked.mains:
        if fed.mains is False:
            return Predicate("power", value, threshold, "no", "the device is not on mains")
        return Predicate("power", value, threshold, "unknown", "nothing says whether the device is on mains")
    if memory.low:
        return Predicate("power", value, threshold, "no", f"the battery is too low, {least:g} % is asked for")
    if level.value is None:
        return Predicate("power", value, threshold, "unknown", f"the battery's level is {level}")
    return Predicate("power", value, threshold, "yes")


def _heat(asked: GateSettings, found: Found, memory: Memory, working: bool) -> Predicate:
    value, heat = str(found.heat), found.heat.value
    if memory.hot:
        threshold = f"below {asked.heat_resume:g} °C, after a pause at {asked.heat_pause:g} °C"
        then = (
            "no sensor says that it is cooler"
            if heat is None
            else f"may go on below {asked.heat_resume:g} °C"
        )
        return Predicate("heat", value, threshold, "no", f"it was too hot to go on, and {then}")
    most, what = (asked.heat_pause, "go on") if working else (asked.heat_start, "begin")
    threshold = f"below {most:g} °C to {what}"
    if heat is None:
        return Predicate("heat", value, threshold, "unknown", _unseen(found.heat))
    if heat >= most:
        return Predicate("heat", value, threshold, "no", f"it is too hot to {what}, {most:g} °C or more")
    return Predicate("heat", value, threshold, "yes")


def _unseen(heat: Reading) -> str:
    if heat.why == "no sensor":
        return "this machine has no sensor of heat"
    return "every sensor of heat is offline: nothing would pause work that gets too hot"


# -- what others need -----------------------------------------------------------------------------------------


def _idle(asked: GateSettings, found: Found, _memory: Memory, working: bool) -> Predicate:
    gpu = found.gpu.value is not None or found.gpu.why != "no sensor"  # without one, the processors tell
    value = f"processors {found.cpu}" + (f", graphics {found.gpu}" if gpu else "")
    threshold = f"at most {asked.cpu_pressure_max:g} %" + (
        f", graphics {asked.gpu_load_max:g} %" if gpu else ""
    )
    if working:
        return Predicate("idle", value, _BEFORE, "yes")
    if found.cpu.value is not None and found.cpu.value > asked.cpu_pressure_max:
        return Predicate("idle", value, threshold, "no", "the processors are busy with something else")
    if found.gpu.value is not None and found.gpu.value > asked.gpu_load_max:
        return Predicate("idle", value, threshold, "no", "the graphics processor is busy with something else")
    if found.cpu.value is None or (gpu and found.gpu.value is None):
        return Predicate("idle", value, threshold, "unknown", "how busy the device is cannot be read")
    return Predicate("idle", value, threshold, "yes")


def _memory(asked: GateSettings, found: Found, _memory: Memory, working: bool) -> Predicate:
    if working:
        return Predicate("memory", _free(found.memory), _BEFORE, "yes")
    return _room("memory", found.memory, asked.memory_min)


def _disk(asked: GateSettings, found: Found, _memory: Memory, _working: bool) -> Predicate:
    return _room("disk", found.disk, asked.disk_min)


def _room(name: str, free: Reading, least: int) -> Predicate:
    threshold = f"at least {size(least)}"
    if free.value is None:
        return Predicate(name, _free(free), threshold, "unknown", f"how much {name} is free cannot be read")
    if free.value * 1e6 < least:
        return Predicate(
            name, _free(free), threshold, "no", f"there is too little {name}, {size(least)} must be free"
        )
    return Predicate(name, _free(free), threshold, "yes")


def _free(reading: Reading) -> str:
    return str(reading) if reading.value is None else size(reading.value * 1e6)


def _mode(asked: GateSettings, found: Found, _memory: Memory, _working: bool) -> Predicate:
    mode = found.mode
    value = mode.name or f"unknown ({mode.why})"
    threshold = " or ".join(asked.power_modes) or "any"
    if not asked.power_modes or mode.name.casefold() in (m.casefold() for m in asked.power_modes):
        return Predicate("power mode", value, threshold, "yes")
    if not mode.name:
        return Predicate(
            "power mode", value, threshold, "unknown", f"the power mode cannot be told ({mode.why})"
        )
    return Predicate("power mode", value, threshold, "no", f"the power mode is {mode.name}")


# -- network and hours ----------------------------------------------------------------------------------------


def _network(asked: GateSettings, found: Found, _memory: Memory, working: bool) -> Predicate:
    """Work that has begun does not need one to go on: what it makes waits for it."""
    net = found.network
    refused = [w for w, fine in (("metered", asked.metered), ("roaming", asked.roaming)) if not fine]
    threshold = f"one that is not {' or '.join(refused)}" if refused else "any"
    if not net.up:
        value = f"{net.interface} down" if net.interface else "none"
        if working:
            return Predicate("network", value, threshold, "yes", f"{net.why}; what is made waits for it")
        return Predicate("network", value, threshold, "no", f"there is no network: {net.why}")
    facts = (("metered", net.metered, asked.metered), ("roaming", net.roaming, asked.roaming))
    value = ", ".join([net.interface or "unknown", *(word for word, true, _ in facts if true)])
    for word, true, fine in facts:
        if true and not fine:
            why = f" ({net.why})" if word == "metered" and net.why else ""
            return Predicate("network", value, threshold, "no", f"{net.interface} is {word}{why}")
    unknown = [word for word, true, fine in facts if true is None and not fine]
    if unknown:
        return Predicate(
            "network", value, threshold, "unknown", f"whether it is {' or '.join(unknown)} is not known"
        )
    return Predicate("network", value, threshold, "yes")


def _budget(_asked: GateSettings, found: Found, _memory: Memory, _working: bool) -> Predicate:
    spent = found.spent
    value = f"{size(spent.day)} today, {size(spent.month)} this month"
    limits = ((spent.day_limit, "a day"), (spent.month_limit, "a month"))
    threshold = ", ".join(f"{size(limit)} {of}" for limit, of in limits if limit is not None) or "any"
    if spent.left is None or spent.left > 0:
        return Predicate("budget", value, threshold, "yes", spent.note)
    if spent.barred:
        why = spent.barred
    else:
        of = "month" if spent.month_limit is not None and spent.month >= spent.month_limit else "day"
        why = f"the bytes of the {of} are spent"
    return Predicate("budget", value, threshold, "no", f"{why}; {spent.note}" if spent.note else why)


def _window(asked: GateSettings, found: Found, _memory: Memory, _working: bool) -> Predicate:
    value = f"{found.wall:%a %H:%M}"
    threshold = " or ".join(w.text for w in asked.windows) or "always"
    if not asked.windows or any(w.holds(found.wall) for w in asked.windows):
        return Predicate("window", value, threshold, "yes")
    return Predicate("window", value, threshold, "no", f"it is not the time for it ({threshold})")


def size(number: float) -> str:
    """Bytes, as a person reads them."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 999.95 or unit == "GB":
            break
        number /= 1000
    return f"{number:.1f}".removesuffix(".0") + f" {unit}"


QUESTIONS = (_power, _heat, _idle, _memory, _disk, _mode, _network, _budget, _window)
