"""The machine: what it is, its JetPack, what of it can be measured, and what Python and memory there are."""

import platform
import re
from dataclasses import dataclass

from koinon_edge.doctor.finding import Finding
from koinon_edge.doctor.patient import Patient
from koinon_edge.metering import choose
from koinon_edge.probe import (
    Files,
    Unreadable,
    hottest,
    memory_available,
    model,
    rails,
    throttled,
    zones,
)

__all__ = ["Jetson", "jetson", "machine", "memory", "sensors"]

_RELEASE = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*(\d+)\.(\d+)")
# The first JetPack with that L4T or a later one (NVIDIA's list of releases).
_JETPACKS = (
    ((39, 2), "7.2", "13.2"), ((38, 4), "7.1", "13.0"), ((38, 2), "7.0", "13.0"), ((36, 5), "6.2.2", "12.6"),
    ((36, 4, 3), "6.2", "12.6"), ((36, 4), "6.1", "12.6"), ((36, 3), "6.0", "12.4"), ((35,), "5", "11.4"),
)  # fmt: skip
_LITTLE_MEMORY = 500.0  # MB
_HOT = 88.0  # °C: where work pauses unless edge.toml says otherwise


@dataclass(frozen=True, slots=True)
class Jetson:
    """Its L4T release, and the JetPack and CUDA that belong to it ("": not known here)."""

    l4t: str
    jetpack: str
    cuda: str

    @property
    def major(self) -> int:
        return int(self.l4t.split(".")[0])

    @property
    def torch_advice(self) -> str:
        """Where a torch comes from that was built for it."""
        if self.major >= 38:
            return (
                "a torch for CUDA 13 on aarch64: `pip install torch`, or the wheels of "
                "https://pypi.jetson-ai-lab.io/sbsa/cu130"
            )
        if self.major == 36:
            return "NVIDIA's own wheels for JetPack 6: `pip install torch --index-url https://pypi.jetson-ai-lab.io/jp6/cu126`"
        return "JetPack 6 or later first: current torch is not built for this JetPack's CUDA"


def jetson(files: Files) -> Jetson | None:
    """What /etc/nv_tegra_release says; None where there is none, or it says something else."""
    try:
        found = _RELEASE.search(files.text(files.root / "etc/nv_tegra_release"))
    except Unreadable:
        return None
    if found is None:
        return None
    release = tuple(int(part) for part in found.groups())
    for least, jetpack, cuda in _JETPACKS:
        if release[0] == least[0] and release >= least:
            return Jetson(".".join(map(str, release)), jetpack, cuda)
    return Jetson(".".join(map(str, release)), "", "")


def machine(files: Files) -> Finding:
    """Which machine this is, and with which JetPack."""
    board, found = model(files), jetson(files)
    name = board or "a machine that does not say what it is"
    if found is None:
        if "jetson" in board.lower():
            return Finding(
                "machine", "warn", f"{name}, and no /etc/nv_tegra_release says which JetPack",
                "in a container, mount it: -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro",
            )  # fmt: skip
        return Finding("machine", "ok", f"{name}; no Jetson")
    jetpack = f"JetPack {found.jetpack}, CUDA {found.cuda}" if found.jetpack else "an unknown JetPack"
    said = f"{name}, L4T {found.l4t} ({jetpack})"
    if found.major < 36:
        return Finding(
            "machine", "warn", said,
            "no current torch is built for it: update to JetPack 6 or later where the module allows it",
        )  # fmt: skip
    return Finding("machine", "ok", said)


def sensors(files: Files) -> list[Finding]:
    """What can be measured: heat, power, and whether the machine slows itself down."""
    heat, source, slow = hottest(zones(files)), choose(files), throttled(files)
    found = []
    if heat.value is None:
        advice = "the gate treats heat as edge.toml says for what is unknown ([gate] unknown)"
        found.append(Finding("heat", "unknown", f"unknown: {heat.why}", advice))
    elif heat.value >= _HOT:
        found.append(
            Finding("heat", "warn", str(heat), "work pauses when it is that hot: see to its cooling")
        )
    else:
        found.append(Finding("heat", "ok", str(heat)))
    if slow.value:
        found.append(
            Finding(
                "cooling",
                "warn",
                f"{slow.value:g} cooling devices slow the machine down",
                "rounds take longer like this: see to its fan, its heat sink, or a lower power mode (nvpmodel)",
            )
        )
    watts = source.read()
    if source.name == "none":
        why = "; ".join(f"{name}: {rail.why}" for name, rail in rails(files).items() if rail.value is None)
        found.append(
            Finding("power", "unknown", why or "nothing here measures power", "rounds will be without joules")
        )
    else:
        found.append(Finding("power", "ok", f"{source.name}, of {source.scope}: {watts}"))
    return found


def memory(files: Files, patient: Patient) -> list[Finding]:
    """The daemon's Python, and the memory that is free."""
    python = Finding("python", "ok", f"{platform.python_version()} on {platform.machine()}")
    free = memory_available(files)
    if free.value is None:
        return [python, Finding("memory", "unknown", f"unknown: {free.why}")]
    if free.value < _LITTLE_MEMORY:
        advice = (
            "training will be killed by the kernel: end what else runs, turn the desktop off, or add swap"
        )
        return [python, Finding("memory", "warn", f"{free.value:.0f} MB free", advice)]
    return [python, Finding("memory", "ok", f"{free.value:.0f} MB free")]
