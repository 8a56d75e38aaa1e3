"""What is wrong with a device, and what its owner can do about it, found out without changing anything.

Every examination returns findings: a topic, a verdict, what was found, and advice where something is to be done. What
cannot be found out is "unknown", with the reason. Nothing here takes for ever, whatever is broken.

    finding.py   a finding, and how findings are shown
    patient.py   what is examined, and the ways to ask it: the tree of files, programs, deadlines
    board.py     the machine, its JetPack, its sensors, Python and memory
    kernel.py    a first kernel on the graphics processor, by the owner's own interpreter; accelerator.py judges it
    network.py   whether the coordinator can be reached; tls.py: whether the two believe each other
    disk.py      room, speed and wear of the disk
    standing.py  the clock, the credentials, edge.toml, systemd
    examine.py   all of it
    report.py    the same as a file that may be sent to a stranger; redact.py takes out what none should see
"""

from koinon_edge.doctor.examine import examine
from koinon_edge.doctor.finding import Finding, Verdict, lines, worst
from koinon_edge.doctor.patient import Patient, Ran, run
from koinon_edge.doctor.report import Extra, report

__all__ = ["Extra", "Finding", "Patient", "Ran", "Verdict", "examine", "lines", "report", "run", "worst"]
