"""XID errors as NVML tells them. Asking costs one system call where none has come."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_void_p, cast
from typing import Any

from trimtab.agent.nvml.library import Device, Lost, call, constant

_XID = constant("nvmlEventTypeXidCriticalError")


class XidEvents:
    """XID errors as NVML tells them, in the order in which they came. A driver or GPU may not offer them: then there are none."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices: list[Device] = []
        self._set = call("nvmlEventSetCreate")
        for device in devices:
            self.listen(device)

    def listen(self, device: Device) -> None:
        """Tell of this GPU's too."""
        self._devices.append(device)
        if self._set is not None and device.handle is not None:
            _try("nvmlDeviceRegisterEvents", device.handle, _XID, self._set)

    def poll(self, limit: int) -> list[tuple[Device | None, int]]:
        """Those that have come, as (GPU, code), without waiting, at most `limit`; no GPU: NVML does not say which."""
        out: list[tuple[Device | None, int]] = []
        while self._set is not None and len(out) < limit:
            event = _try("nvmlEventSetWait_v2", self._set, 0)
            if event is None:
                break
            if event.eventType == _XID:
                out.append((self._of(event.device), int(event.eventData)))
        return out

    def close(self) -> None:
        """Stop listening."""
        if self._set is not None:
            _try("nvmlEventSetFree", self._set)
            self._set = None

    def _of(self, handle: Any) -> Device | None:
        pointers = ((device, device.handle) for device in self._devices if device.handle is not None)
        return next((device for device, known in pointers if _pointer(known) == _pointer(handle)), None)


def _try(name: str, *arguments: Any) -> Any | None:
    try:
        return call(name, *arguments)
    except Lost:
        return None


def _pointer(handle: Any) -> int | None:
    return cast(handle, c_void_p).value
