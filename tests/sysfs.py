"""Trees of the kernel's files as other machines have them, for the readers of koinon_edge.probe."""

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Tree"]


class Tree:
    """Files below `root`. What is `offline` is a pipe that somebody holds open and says nothing in: a reader that does
    not block gets EAGAIN of it, any other waits for ever."""

    def __init__(self, root: Path):
        self.root = root
        self._held: list[int] = []

    def close(self) -> None:
        for file in self._held:
            os.close(file)

    def write(self, files: Mapping[str, object]) -> "Tree":
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return self

    def offline(self, name: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        self._held.append(os.open(path, os.O_RDWR))

    def zone(self, number: int, kind: str, milli: object) -> None:
        folder = f"sys/class/thermal/thermal_zone{number}"
        self.write({f"{folder}/type": kind, f"{folder}/temp": milli})

    def ina3221(self, number: int, rails: list[tuple[str, int, int]]) -> None:
        """Rails: label, millivolts, milliamperes."""
        folder = f"sys/class/hwmon/hwmon{number}"
        self.write({f"{folder}/name": "ina3221"})
        for i, (label, millivolts, milliamperes) in enumerate(rails, start=1):
            self.write({
                f"{folder}/in{i}_label": label, f"{folder}/in{i}_input": millivolts,
                f"{folder}/curr{i}_input": milliamperes,
            })  # fmt: skip
        self.write({f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": 99999})

    def routes(self, *interfaces: str, state: str = "up") -> None:
        """Default routes over these interfaces, the first of which is preferred; each of them is `state`."""
        table = ["Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT"]
        for metric, name in reversed(list(enumerate(interfaces, start=100))):
            table.append(f"{name}\t00000000\t0102A8C0\t0003\t0\t0\t{metric}\t00000000\t0\t0\t0")
            table.append(f"{name}\t0002A8C0\t00000000\t0001\t0\t0\t{metric}\t00FFFFFF\t0\t0\t0")
            self.write({f"sys/class/net/{name}/operstate": state})
        self.write({"proc/net/route": "\n".join(table), "proc/net/ipv6_route": ""})

    def power_mode(self, number: int) -> None:
        """Of an Orin Nano's modes 0: 15W, 1: 25W, 2: MAXN_SUPER."""
        names = ("15W", "25W", "MAXN_SUPER")
        modes = (f"< POWER_MODEL ID={i} NAME={name} >\nGPU MAX_FREQ -1\n" for i, name in enumerate(names))
        self.write({
            "var/lib/nvpmodel/status": f"pmode:{number:04} fmode:fanNull",
            "etc/nvpmodel.conf": "".join(modes) + "< PM_CONFIG DEFAULT=1 >",
        })  # fmt: skip

    # -- machines -----------------------------------------------------------------------------------------------

    def orin_nano(self) -> "Tree":
        """Its cv zones are offline."""
        self.write({
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/meminfo": "MemTotal: 7802000 kB\nMemFree: 512000 kB\nMemAvailable: 4096000 kB",
            "proc/loadavg": "0.10 0.20 0.30 1/200 4242",
            "sys/class/devfreq/17000000.gpu/device/load": 435,
            "sys/class/thermal/cooling_device0/type": "pwm-fan", "sys/class/thermal/cooling_device0/cur_state": 3,
            "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0", "sys/class/thermal/cooling_device1/cur_state": 0,
        })  # fmt: skip
        for number, (kind, milli) in enumerate(
            (("cpu-thermal", 48750), ("gpu-thermal", 50125), ("cv0-thermal", 0), ("cv1-thermal", 0),
             ("soc0-thermal", 49000), ("tj-thermal", 51250), ("tboard-thermal", 60000))
        ):  # fmt: skip
            self.zone(number, kind, milli)
        for number in (2, 3):
            self.offline(f"sys/class/thermal/thermal_zone{number}/temp")
        self.write({"sys/class/hwmon/hwmon0/name": "nvme"})
        self.ina3221(4, [("VDD_IN", 5000, 1480), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 5000, 300)])
        return self

    def agx_orin(self) -> "Tree":
        """It has no rail that feeds all of it, one that is connected to nothing, and an eMMC."""
        self.write({"proc/device-tree/model": "NVIDIA Jetson AGX Orin"})
        self.ina3221(2, [("VDD_GPU_SOC", 20000, 300), ("VDD_CPU_CV", 20000, 100), ("VIN_SYS_5V0", 5000, 800)])
        self.ina3221(3, [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 1800, 500), ("NC", 0, 0)])
        self.write({"sys/class/mmc_host/mmc0/mmc0:0001/life_time": "0x01 0x03"})
        return self

    def thor(self) -> "Tree":
        self.write({
            "proc/device-tree/model": "NVIDIA Jetson AGX Thor", "sys/class/devfreq/gpu-gpc-0/device/load": 1000,
            "sys/class/hwmon/hwmon1/name": "ina238", "sys/class/hwmon/hwmon1/power1_input": 45_500_000,
        })  # fmt: skip
        self.ina3221(5, [("VDD_GPU", 12000, 1000), ("VDD_CPU_SOC_MSS", 12000, 500), ("NC", 0, 0)])
        return self

    def server(self) -> "Tree":
        rapl = "sys/class/powercap/intel-rapl:0"
        self.write({
            "sys/class/dmi/id/product_name": "PowerEdge", "proc/pressure/cpu": _PSI.format(12.5),
            "proc/pressure/io": _PSI.format(0.0), f"{rapl}/energy_uj": 1_000_000, f"{rapl}/name": "package-0",
            f"{rapl}/max_energy_range_uj": 262_143_328_850, f"{rapl}:0/energy_uj": 7, f"{rapl}:0/name": "core",
        })  # fmt: skip
        self.zone(0, "x86_pkg_temp", 61000)
        self.zone(1, "x86_pkg_temp", 64000)
        return self

    def laptop(self) -> "Tree":
        power = "sys/class/power_supply"
        self.write({
            f"{power}/AC/type": "Mains", f"{power}/AC/online": 0, f"{power}/BAT0/type": "Battery",
            f"{power}/BAT0/present": 1, f"{power}/BAT0/capacity": 43, f"{power}/BAT0/status": "Discharging",
            f"{power}/hidpp_battery_0/type": "Battery", f"{power}/hidpp_battery_0/scope": "Device",
            f"{power}/hidpp_battery_0/capacity": 5,
        })  # fmt: skip
        self.zone(0, "acpitz", 45000)
        self.zone(1, "iwlwifi_1", 70000)
        return self


_PSI = "some avg10={} avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0"
