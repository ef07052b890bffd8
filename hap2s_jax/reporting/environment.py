"""Versions and hardware, on which numbers depend besides the code, for the record of a run."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint", "tensorflow", "tensorflow-cpu",
             "tensorflow-datasets")  # fmt: skip


def describe() -> dict[str, Any]:
    """Versions and hardware as a dict for JSON; nothing in it names the user or the machine.

    Keys: hap2s_jax, commit (of a source checkout, with "+changes" where it is dirty; None elsewhere),
    python, platform, packages (name -> version, installed ones), backend, devices (kind -> count, of all
    processes), processes, cpu (model), cpus (that this process may use), memory_gib.

    Asking for the devices starts JAX's backend: in a run of several processes call it after
    `jax.distributed.initialize`.
    """
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    return {
        "hap2s_jax": _version("hap2s_jax"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "backend": jax.default_backend(),
        "devices": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "processes": jax.process_count(),
        "cpu": _cpu_model(),
        "cpus": usable_cores(),
        "memory_gib": _memory_gib(),
    }


def summary(facts: dict[str, Any] | None = None) -> str:
    """One line for the head of a log: "jax 0.10.2 on 1 x NVIDIA H200, 16 CPUs (...), Python 3.11.7"."""
    facts = describe() if facts is None else facts
    devices = ", ".join(f"{count} x {kind}" for kind, count in facts["devices"].items())
    return (
        f"jax {facts['packages'].get('jax', '?')} on {devices}, {facts['cpus']} CPUs ({facts['cpu']}), "
        f"Python {facts['python']}"
    )


def versions(facts: Mapping[str, Any]) -> str:
    """The packages of `describe`: "jax 0.10.2, jaxlib 0.10.2, ..."."""
    return ", ".join(f"{name} {version}" for name, version in facts["packages"].items())


def peak_memory() -> dict[str, float]:
    """Greatest memory used so far, in GiB: host_gib (this process) and device_gib (fullest local device).

    A key is missing where the platform does not tell (device memory on CPU, host memory on Windows).
    """
    import jax

    peaks = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB here
        peaks["host_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    used = [entry["peak_bytes_in_use"] for entry in stats if "peak_bytes_in_use" in entry]
    return peaks | ({"device_gib": max(used) / 2**30} if used else {})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.strip()

    # An installed copy may lie inside somebody else's repository: this very file must be tracked.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None or not (
        head := git("rev-parse", "HEAD")
    ):
        return None
    return head + ("+changes" if git("status", "--porcelain", "--untracked-files=no", ":/") else "")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """The number of CPU cores that this process may use; a container or a scheduler may grant only some."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _granted_cores(Path("/sys/fs/cgroup")) or cores)


def _granted_cores(cgroup: Path) -> int | None:
    """Cores' worth of time granted to a container (docker --cpus, limits of Kubernetes); None without a limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:  # the first version of control groups
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        return max(1, math.ceil(int(quota) / int(period))) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):  # "max"
        return None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
