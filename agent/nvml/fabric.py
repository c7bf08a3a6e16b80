"""The NVLink fabric that joins GPUs of several hosts, or all of one host through NVSwitches."""

from __future__ import annotations

from trimtab.agent.nvml.library import Device, constant
from trimtab.agent.nvml.library import fabric as ask
from trimtab.agent.registry import Signal

SIGNALS = (
    Signal(
        "fabric_state",
        "1",
        "joining the NVLink fabric: 1 not begun, 2 under way, 3 done; unknown without a fabric",
        "gpu",
    ),
    Signal(
        "fabric_degraded",
        "1",
        "1: joining the fabric failed, or it gives this GPU less than it should, or is set up wrongly",
        "gpu",
    ),
)
_MASK = "NVML_GPU_FABRIC_HEALTH_MASK"
_TRUE = 1
_TROUBLES = ("DEGRADED_BW", "ROUTE_RECOVERY", "ROUTE_UNHEALTHY", "ACCESS_TIMEOUT_RECOVERY")
_SETUP = "INCORRECT_CONFIGURATION"
_SETUP_FINE = constant(f"{_MASK}_{_SETUP}_NONE")


def read(device: Device) -> dict[str, float]:
    """Both signals, without what is not known. Raises Lost."""
    found = ask(device)
    if found is None:
        return {}
    state, failed, mask = found
    troubles = [_part(mask, name) for name in _TROUBLES]
    setup = _part(mask, _SETUP)
    if not any(troubles) and not setup and not failed:  # this driver or fabric says nothing of its health
        return {"fabric_state": state}
    return {"fabric_state": state, "fabric_degraded": float(failed or _TRUE in troubles or setup > _SETUP_FINE)}


def _part(mask: int, name: str) -> int:
    return mask >> constant(f"{_MASK}_SHIFT_{name}") & constant(f"{_MASK}_WIDTH_{name}")
