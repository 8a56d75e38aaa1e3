"""Whether torch works on this device: judged by a kernel that it really runs, in a process that may die of it."""

import json
import signal
from importlib.resources import files as resources
from typing import Any

from koinon_edge.doctor.board import jetson
from koinon_edge.doctor.finding import Finding
from koinon_edge.doctor.patient import Patient, Ran, Runner
from koinon_edge.probe import Files, gpus_of, model

__all__ = ["LONGEST", "torch"]

LONGEST = 60.0
"""Seconds for it all: a first import from an SD card takes long."""
_OFF = 0.02  # relative: convolutions may be done in TF32, which has 10 bits
_TOPIC = "torch"


def torch(files: Files, patient: Patient, runner: Runner) -> Finding:
    """What the interpreter of the task makes of a matrix product and a convolution, on the device and beside it."""
    program = resources("koinon_edge.doctor").joinpath("kernel.py").read_text()
    ran = runner([patient.python, "-c", program], LONGEST)
    said = _said(ran)
    if said is None:
        return _died(patient, ran)
    return _judged(files, patient, said)


def _said(ran: Ran) -> dict[str, Any] | None:
    """The last line of JSON; libraries write lines of their own."""
    if ran.status is None:
        return None
    for line in reversed(ran.out.splitlines()):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and "stage" in said:
            return said
    return None


def _died(patient: Patient, ran: Ran) -> Finding:
    if ran.status is None and ran.error:
        return Finding(_TOPIC, "bad", ran.error, "name the interpreter that the task's command uses")
    if ran.status is None:
        return Finding(
            _TOPIC, "bad", f"its first kernel did not end in {LONGEST:.0f} s, and was killed",
            "see `dmesg` for the driver's complaints and restart the machine; with a slow disk, try once more",
        )  # fmt: skip
    if ran.status == -signal.SIGKILL:
        return Finding(
            _TOPIC, "bad", "the kernel killed it (SIGKILL), as it does when memory runs out",
            "end what else takes memory, turn the desktop off, or add swap",
        )  # fmt: skip
    if ran.status == -signal.SIGILL:
        return Finding(
            _TOPIC, "bad", "it died of an illegal instruction: this build is for another processor",
            "install a wheel for this one, or set OPENBLAS_CORETYPE=ARMV8 in the task's environment",
        )  # fmt: skip
    how = f"by signal {-ran.status}" if ran.status < 0 else f"with status {ran.status}"
    last = (ran.error.strip().splitlines() or ["and said nothing"])[-1]
    return Finding(
        _TOPIC, "bad", f"the check ended {how}: {last[:200]}",
        f"run `{patient.python} -c 'import torch'` yourself and see what it says",
    )  # fmt: skip


def _judged(files: Files, patient: Patient, said: dict[str, Any]) -> Finding:
    board, error = jetson(files), str(said.get("error", ""))[:300]
    install = board.torch_advice if board else "the build of https://pytorch.org for this machine's driver"
    name, stage = f"torch {said.get('torch', '?')}", said["stage"]
    if stage == "import":
        if said.get("missing"):
            found = f"{patient.python} (Python {said.get('python', '?')}) has no torch"
            return Finding(_TOPIC, "warn", found, f"if the task trains with torch, install {install}")
        return Finding(_TOPIC, "bad", f"torch cannot be imported: {error}", f"install {install}")
    if stage == "processor":
        return Finding(_TOPIC, "bad", f"{name} fails on the processor already: {error}", f"install {install}")
    if stage == "no gpu":
        return _without(files, said, name, install)
    gpu = f"{said.get('gpu', 'a GPU')} ({said.get('capability', '?')})"
    if stage == "done":
        if not said["off"] <= _OFF:  # nor is NaN
            found = f"{name} computes something else on {gpu} than on the processor: {said['off']:.2g} off"
            return Finding(_TOPIC, "bad", found, f"do not train with it; install {install}")
        return Finding(
            _TOPIC, "ok", f"{name} computes on {gpu} what it computes on the processor (CUDA {said['cuda']})"
        )
    if "out of memory" in error.lower():
        found = f"{name} has no memory left on {gpu}: {error}"
        return Finding(_TOPIC, "warn", found, "see what else uses the graphics processor, and end it")
    built = ", ".join(said.get("built_for") or ()) or "nothing that it names"
    return Finding(
        _TOPIC, "bad", f"torch says that there is a GPU, and its first kernel fails: {error}",
        f"this torch was not built for this GPU ({gpu}; it was for {built}): install {install}",
    )  # fmt: skip


def _without(files: Files, said: dict[str, Any], name: str, install: str) -> Finding:
    if not _has_gpu(files):
        return Finding(_TOPIC, "ok", f"{name} computes on the processor; there is no NVIDIA GPU")
    if said.get("cuda") is None:
        return Finding(
            _TOPIC, "bad", f"{name} was built without CUDA, and this machine has a GPU", f"install {install}"
        )
    return Finding(
        _TOPIC, "bad", f"{name} (CUDA {said['cuda']}) finds no GPU, and this machine has one",
        "see that the user is in the groups video and render, that a container is started with the nvidia runtime, and "
        f"that the driver is not older than that CUDA; else install {install}",
    )  # fmt: skip


def _has_gpu(files: Files) -> bool:
    if jetson(files) is not None or "jetson" in model(files).lower():
        return True
    gpus = gpus_of(files)
    if gpus is not None and gpus.names:
        gpus.close()
        return True
    return bool(files.glob("proc/driver/nvidia/gpus/*"))
