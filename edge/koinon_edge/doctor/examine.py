"""All of it, in the order in which an owner would mend it: what is below comes first."""

import time
from collections.abc import Callable

from koinon_edge.doctor import board, disk, standing
from koinon_edge.doctor.accelerator import torch
from koinon_edge.doctor.finding import Finding
from koinon_edge.doctor.network import network
from koinon_edge.doctor.patient import Patient, Runner, run
from koinon_edge.probe import Files

__all__ = ["examine"]


def examine(
    patient: Patient, *, clock: Callable[[], float] = time.time, runner: Runner = run
) -> list[Finding]:
    """Every finding about this device. `clock` is in seconds since 1970; `runner` runs the task's interpreter."""
    files, now = Files(patient.root), clock()
    credentials, standing_of = standing.credentials(patient.credentials, now)
    address = patient.address or (credentials.address if credentials is not None else "")
    return [
        board.machine(files),
        *board.sensors(files),
        *board.memory(files, patient),
        torch(files, patient, runner),
        *disk.disk(files, patient.state, patient.disk_min),
        standing.clock(files, now),
        standing_of,
        *network(patient, address, now),
        standing.settings(patient.settings),
        standing.systemd(files, patient),
    ]
