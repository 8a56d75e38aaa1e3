"""What the doctor found, as a file that its owner may send to a stranger: a zip of a few small texts.

    findings.txt  what was found, to read
    report.json   the same for programs, the versions, and of the environment what is in a short list
    sensors.json  what the device says of itself
    log.txt       the end of the daemon's log, where one is given

All of it goes through one redaction: no key, token or password, no value of the environment that is not in the list, no
name of a person, a host or a folder of the owner's. edge.toml itself is never in it.
"""

import getpass
import io
import itertools
import json
import os
import platform
import re
import socket
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace

from koinon_core import __version__
from koinon_edge.doctor.finding import Finding, lines, worst
from koinon_edge.doctor.redact import Redactor, secrets_in
from koinon_edge.probe import Reading

__all__ = ["Extra", "report"]

_TOLD = (
    "LANG", "LC_ALL", "TZ", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
    "CUDA_LAUNCH_BLOCKING", "CUDA_MODULE_LOADING", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS", "OPENBLAS_CORETYPE",
    "GRPC_VERBOSITY", "GRPC_DNS_RESOLVER", "container",
)  # fmt: skip
_WHETHER = (
    "NOTIFY_SOCKET", "WATCHDOG_USEC", "grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "SSL_CERT_FILE",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH", "VIRTUAL_ENV", "KOINON_CREDENTIALS", "KOINON_STATE",
    "KOINON_INSECURE",
)  # fmt: skip
_PEOPLE = ("USER", "LOGNAME", "SUDO_USER", "USERNAME")
_LONGEST_LOG = 256 * 1024  # characters, from its end
_EPOCH = (1980, 1, 1, 0, 0, 0)  # when files in the zip were written is nobody's business


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """What else goes into a report, or must not: the `board` and its `sensors`, the end of a `log`; the `environment`
    and the `arguments` of this process, the `task_environment` of edge.toml; `hosts` and `names` (of the device, its
    operators) that are known."""

    board: str = ""
    sensors: Mapping[str, Reading] = field(default_factory=dict)
    log: str = ""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    arguments: Sequence[str] = ()
    task_environment: Mapping[str, str] = field(default_factory=dict)
    hosts: Sequence[str] = ()
    names: Sequence[str] = ()


def report(findings: Iterable[Finding], extra: Extra) -> bytes:
    """The zip."""
    listed = [_unquoted(finding) for finding in findings]
    clean = _redactor(extra)
    told = {name: value for name, value in extra.environment.items() if name in _TOLD}
    said = {
        "koinon": __version__, "python": platform.python_version(), "system": platform.system(),
        "kernel": platform.release(), "machine": platform.machine(), "board": clean(extra.board),
        "environment": clean.value(told), "set": [name for name in _WHETHER if extra.environment.get(name)],
        "worst": worst(listed), "findings": [clean.value(asdict(finding)) for finding in listed],
    }  # fmt: skip
    sensors = {clean(name): clean.value(asdict(reading)) for name, reading in extra.sensors.items()}
    texts = {
        "report.json": _json(said),
        "findings.txt": clean("\n".join(lines(listed))) + "\n",
        "sensors.json": _json(sensors),
    }
    if extra.log:
        # Cut at a line, not within a secret that would then be known by no pattern.
        tail = extra.log if len(extra.log) <= _LONGEST_LOG else extra.log[-_LONGEST_LOG:].partition("\n")[2]
        texts["log.txt"] = clean(tail)
    return _zipped(texts)


def _redactor(extra: Extra) -> Redactor:
    known = [(n, v) for n, v in extra.environment.items() if n not in (*_TOLD, *_PEOPLE)]
    known += extra.task_environment.items()
    for before, word in itertools.pairwise(extra.arguments):  # the first one is this program
        known.append((before if before.startswith("-") else "", word))
        known.append(word.partition("=")[::2])
    people = {extra.environment[name] for name in _PEOPLE if extra.environment.get(name)}
    people.add(extra.environment.get("HOME", "").rpartition("/")[2])
    with suppress(OSError, KeyError):
        people.add(getpass.getuser())
    return Redactor(secrets_in(known), {socket.gethostname(), *extra.hosts}, people | set(extra.names))


def _unquoted(finding: Finding) -> Finding:
    """Without the value that a sentence about edge.toml shows: nobody knows yet whether it is a secret."""
    if finding.topic != "edge.toml":
        return finding
    return replace(
        finding, found=re.sub(r"= .* must be", "= <withheld> must be", finding.found, flags=re.DOTALL)
    )


def _json(said: object) -> str:
    return json.dumps(said, indent=2, ensure_ascii=False) + "\n"


def _zipped(texts: Mapping[str, str]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in texts.items():
            file.writestr(zipfile.ZipInfo(name, _EPOCH), text.encode(errors="replace"), zipfile.ZIP_DEFLATED)
    return whole.getvalue()
