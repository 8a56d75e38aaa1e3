"""NVIDIA graphics processors of servers, asked through their driver's own library (NVML), which comes with it.

On a Jetson the library is there, says that there is one processor, and answers every question with "not supported":
each is a reading that is unknown, and the rails on the board stay the source of its power (probe/power.py). A driver
that hangs holds up a thread of its own and nobody else: until that thread is free, all readings are "late".
"""

import contextlib
import ctypes
import queue
import threading
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from pathlib import Path
from typing import Any

from koinon_edge.probe.files import Files
from koinon_edge.probe.reading import Reading

__all__ = ["LIBRARY", "Gpus", "gpus_of"]

LIBRARY = "libnvidia-ml.so.1"
_SUCCESS, _NOT_SUPPORTED, _NO_PERMISSION = 0, 3, 4
_WHY = {
    _NOT_SUPPORTED: "not supported by this driver", _NO_PERMISSION: "denied", 9: "the driver is not loaded",
    15: "the graphics processor is lost", 999: "offline",
}  # fmt: skip
_CHIP = 0  # NVML_TEMPERATURE_GPU


class _Utilisation(ctypes.Structure):
    _fields_ = (("gpu", c_uint), ("memory", c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "nvmlInit_v2": (),
    "nvmlShutdown": (),
    "nvmlDeviceGetCount_v2": (POINTER(c_uint),),
    "nvmlDeviceGetHandleByIndex_v2": (c_uint, POINTER(c_void_p)),
    "nvmlDeviceGetName": (c_void_p, c_char_p, c_uint),
    "nvmlDeviceGetPowerUsage": (c_void_p, POINTER(c_uint)),
    "nvmlDeviceGetTotalEnergyConsumption": (c_void_p, POINTER(c_ulonglong)),
    "nvmlDeviceGetTemperature": (c_void_p, c_int, POINTER(c_uint)),
    "nvmlDeviceGetUtilizationRates": (c_void_p, POINTER(_Utilisation)),
    "nvmlDeviceGetMemoryInfo": (c_void_p, POINTER(_Memory)),
}


class _Failed(Exception):
    """A call said no, by `why`."""

    def __init__(self, why: str):
        super().__init__(why)
        self.why = why


class _Patient:
    """A thread that does one thing after the other, for those who cannot wait long."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._owed = 0  # answers that nobody waits for any more
        threading.Thread(target=self._run, name="koinon-nvml", daemon=True).start()

    def _run(self) -> None:
        while (what := self._asked.get()) is not None:
            try:
                self._answers.put(what())
            except _Failed as failed:
                self._answers.put(failed)

    def do(self, what: Callable[[], Any], deadline: float) -> Any:
        """What came of it. _Failed where it said no, or nothing in time; then nothing is begun before that is over."""
        with self._lock:
            while self._owed and not self._answers.empty():
                self._answers.get()
                self._owed -= 1
            if self._owed:
                raise _Failed("late")
            self._asked.put(what)
            try:
                answer = self._answers.get(timeout=deadline)
            except queue.Empty:
                self._owed += 1
                raise _Failed("late") from None
        if isinstance(answer, _Failed):
            raise answer
        return answer

    def end(self) -> None:
        self._asked.put(None)


class _Library:
    """The functions that are used, each refused with its reason where it does not end well."""

    def __init__(self, path: str):
        try:
            self._loaded = ctypes.CDLL(path)
        except OSError:
            raise _Failed("no driver") from None

    def call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._loaded, name)
        except AttributeError:  # of a driver that is older than the question
            raise _Failed(_WHY[_NOT_SUPPORTED]) from None
        function.argtypes, function.restype = _SIGNATURES[name], c_int
        code = function(*arguments)
        if code != _SUCCESS:
            raise _Failed(_WHY.get(code, f"error {code} of NVML"))

    def open(self) -> list[tuple[str, c_void_p]]:
        """The name and the handle of each graphics processor."""
        self.call("nvmlInit_v2")
        count = c_uint()
        self.call("nvmlDeviceGetCount_v2", byref(count))
        found = []
        for index in range(count.value):
            handle, name = c_void_p(), ctypes.create_string_buffer(96)
            self.call("nvmlDeviceGetHandleByIndex_v2", index, byref(handle))
            try:
                self.call("nvmlDeviceGetName", handle, name, len(name))
            except _Failed:
                name.value = b"NVIDIA GPU"
            found.append((name.value.decode(errors="replace"), handle))
        return found


class Gpus:
    """The graphics processors that a driver's library tells of; none where it tells nothing, and then `why`. Opening
    waits `patience` seconds at most (a driver that nobody uses starts its hardware first), a question `deadline`."""

    def __init__(self, library: str = LIBRARY, *, deadline: float = 0.5, patience: float = 5.0):
        self._deadline, self._worker = deadline, _Patient()
        self._library: _Library | None = None
        self._handles: list[c_void_p] = []
        self.names: tuple[str, ...] = ()
        self.why = ""
        try:
            self._library, found = self._worker.do(lambda: _opened(library), patience)
        except _Failed as failed:
            self.why = failed.why
            self._worker.end()
            return
        self.names, self._handles = tuple(name for name, _ in found), [handle for _, handle in found]

    def power(self) -> Reading:
        """Watts that all of them draw now; unknown where one does not say."""
        return _sum([self._power(handle) for handle in self._handles], "W", self.why)

    def energy(self) -> Reading:
        """Joules that all of them have drawn since the driver was loaded."""
        return _sum([self._energy(handle) for handle in self._handles], "J", self.why)

    def readings(self) -> dict[str, Reading]:
        """All that they say, by "gpu NUMBER QUESTION"."""
        found: dict[str, Reading] = {}
        for number, handle in enumerate(self._handles):
            used = _Memory()
            rates = _Utilisation()
            memory = self._ask("nvmlDeviceGetMemoryInfo", handle, used, "MB", lambda m: m.used / 1e6)
            load = self._ask("nvmlDeviceGetUtilizationRates", handle, rates, "%", lambda u: float(u.gpu))
            found |= {
                f"gpu {number} power": self._power(handle),
                f"gpu {number} heat": self._heat(handle),
                f"gpu {number} at work": load,
                f"gpu {number} memory in use": memory,
            }
        return found

    def close(self) -> None:
        """Nothing more will be asked."""
        library, self._library = self._library, None
        if library is not None:
            self.names, self._handles, self.why = (), [], "closed"
            with contextlib.suppress(_Failed):
                self._worker.do(lambda: library.call("nvmlShutdown"), self._deadline)
            self._worker.end()

    def _power(self, handle: c_void_p) -> Reading:
        return self._ask("nvmlDeviceGetPowerUsage", handle, c_uint(), "W", lambda mw: mw.value / 1e3)

    def _energy(self, handle: c_void_p) -> Reading:
        question = "nvmlDeviceGetTotalEnergyConsumption"
        return self._ask(question, handle, c_ulonglong(), "J", lambda mj: mj.value / 1e3)

    def _heat(self, handle: c_void_p) -> Reading:
        question = "nvmlDeviceGetTemperature"
        return self._ask(question, handle, c_uint(), "°C", lambda t: float(t.value), _CHIP)

    def _ask(
        self, question: str, handle: c_void_p, answer: Any, unit: str, of: Callable[[Any], float], *more: int
    ) -> Reading:
        library = self._library
        if library is None:
            return Reading.unknown(unit, "NVML", self.why or "closed")
        try:
            # A late call writes into `answer` when it is over: what it writes into must not be freed before.
            self._worker.do(lambda: library.call(question, handle, *more, byref(answer)), self._deadline)
        except _Failed as failed:
            return Reading.unknown(unit, question, failed.why)
        return Reading(of(answer), unit, question)


def _opened(path: str) -> tuple[_Library, list[tuple[str, c_void_p]]]:
    library = _Library(path)
    return library, library.open()


def _sum(parts: list[Reading], unit: str, why: str) -> Reading:
    for part in parts:
        if part.value is None:
            return part
    if not parts:
        return Reading.unknown(unit, "NVML", why or "no sensor")
    return Reading(sum(part.value or 0.0 for part in parts), unit, parts[0].source)


def gpus_of(files: Files) -> Gpus | None:
    """This machine's. None for a tree of another's files, whose libraries are not for this one to run."""
    return Gpus() if files.root == Path("/") else None
