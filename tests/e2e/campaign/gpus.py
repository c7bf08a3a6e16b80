"""GPUs that the agent sees by a stand-in for NVIDIA's library, one an instance, and their faults.

What a faulty GPU does to its instance is made by the handler, which waits or fails while the fault lasts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pynvml

from tests.agent.nvml import stub
from tests.e2e.faults import errors, slow
from tests.e2e.fleet import Instance
from trimtab import Exit, TrimtabError

HALTED = 62
"""XID: an internal micro-controller halted; it takes a reset."""
_THERMAL = 0x20
_RECOVERY = f"field:{pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION}:0"
_RESET = 1
# CALL → VALUE, in the words of the stand-in.
_WELL = {
    "nvmlDeviceGetUtilizationRates": 20 << 32 | 40,
    "nvmlDeviceGetMemoryInfo": 4 << 30,
    "nvmlDeviceGetPowerUsage": 250_000,
    "nvmlDeviceGetEnforcedPowerLimit": 400_000,
    "nvmlDeviceGetTemperature": 60,
    "nvmlDeviceGetClockInfo:1": 1410,
    "nvmlDeviceGetClockInfo:2": 1215,
}
_THROTTLED = {
    "nvmlDeviceGetCurrentClocksEventReasons": _THERMAL,
    "nvmlDeviceGetTemperature": 93,
    "nvmlDeviceGetClockInfo:1": 600,
    "nvmlDeviceGetPowerUsage": 140_000,
}


class Gpus:
    """GPU number i is the one that instance number i computes on."""

    def __init__(self, library: Path, instances: Sequence[Instance]) -> None:
        self._state, self._instances = library / "state", instances
        self._faults: dict[tuple[int, str], int] = {}
        # The stand-in tells each once, by its position: none may go.
        self._xids: list[str] = []

    def write(self) -> None:
        """Tell the stand-in how the GPUs are, and which processes compute on them now."""
        lines = [f"count 0 {len(self._instances)} 0"]
        for gpu, instance in enumerate(self._instances):
            lines += [f"{call} {gpu} {value} 0" for call, value in _WELL.items()]
            lines += [f"nvmlDeviceGetComputeRunningProcesses_v3 {gpu} {w.pid} 0" for w in instance.workers()]
            lines += [f"process_bytes {gpu} {4 << 30} 0"]
        lines += [f"{call} {gpu} {value} 0" for (gpu, call), value in self._faults.items()]
        new = self._state.with_suffix(".new")
        new.write_text("\n".join(lines + self._xids) + "\n")
        new.rename(self._state)

    @contextmanager
    def throttled(self, instance: Instance) -> Iterator[None]:
        """It is too hot, so its clock is less than half, and each request takes longer."""
        with self._fault(instance, _THROTTLED), slow(instance):
            yield

    @contextmanager
    def uncorrected(self, instance: Instance) -> Iterator[None]:
        """Its memory has errors that cannot be corrected, and each request fails."""
        with self._fault(instance, {"nvmlDeviceGetTotalEccErrors:2": 3}), errors(instance):
            yield

    @contextmanager
    def halted(self, instance: Instance) -> Iterator[None]:
        """The driver tells of an XID and asks for a reset, and each request fails until then."""
        self._xids.append(f"xid {self._instances.index(instance)} {HALTED} 0")
        with self._fault(instance, {_RECOVERY: _RESET}), errors(instance):
            yield

    @contextmanager
    def _fault(self, instance: Instance, values: dict[str, int]) -> Iterator[None]:
        gpu = self._instances.index(instance)
        self._faults |= {(gpu, call): value for call, value in values.items()}
        self.write()
        try:
            yield
        finally:
            self._faults.clear()
            self.write()


def build(directory: Path) -> Path:
    """The folder with the stand-in. Raises TrimtabError."""
    if shutil.which("gcc") is None:
        raise TrimtabError("gcc is not installed: apt-get install gcc libc6-dev", Exit.SETTINGS)
    directory.mkdir()
    return stub.build(directory)
