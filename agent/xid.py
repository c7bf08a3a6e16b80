"""NVIDIA's XID errors: what each code means, whom to suspect first, and what to do.

The facts are those of NVIDIA's "Xid Errors" (its listing, and its catalogue for Ampere and later) as of release 580, and of the Fabric
Manager user guide. A code that NVIDIA lists as unused, or that is newer than this table, is said to have no documented meaning.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Action(enum.Enum):
    """What brings the GPU back to work. The text is what a person reads."""

    NOTHING = "nothing to do"
    RESTART_APPLICATION = "restart the application"
    UPDATE_DRIVER = "update the driver or its firmware"
    RESTART_VM = "restart the virtual machine"
    CHECK_LINKS = "check NVLink; reset the GPU if a link stays down; replace it if that comes back"
    CHECK_POWER = "check the power cables of the GPU"
    CONTACT_SUPPORT = "collect nvidia-bug-report.sh and ask the vendor"
    RESET_GPU = "drain and reset the GPU; replace it if this comes back"
    RESTART_HOST = "drain and restart the host; reseat or replace the GPU if this comes back"


STICKY = {Action.CHECK_POWER: 1, Action.CHECK_LINKS: 2, Action.RESET_GPU: 3, Action.RESTART_HOST: 4}
"""Actions that a GPU cannot do without, by their gravity: the fault stays until one was seen to be done."""


@dataclass(frozen=True, slots=True)
class Xid:
    """One kind of error."""

    code: int
    meaning: str
    suspects: str
    """Whose fault, the likeliest first: application, driver, hardware, system (host memory, bus, power, heat)."""
    action: Action

    @property
    def sticky(self) -> bool:
        """Whether the GPU stays faulty until somebody acts."""
        return self.action in STICKY

    def __str__(self) -> str:
        return f"XID {self.code}: {self.meaning}; suspect: {self.suspects}; {self.action.value}"


_APP, _RESET = Action.RESTART_APPLICATION, Action.RESET_GPU
_ANY = "application, driver, hardware"
_HARD = "hardware, driver"

_LISTED: tuple[tuple[int | range, str, str, Action], ...] = (
    (range(1, 7), "invalid or corrupted command stream", "driver, system", _APP),
    (7, "invalid or corrupted command stream address", "driver, system", _APP),
    (8, "the GPU stopped processing a channel that was idle for too long", "application, driver, system", _APP),
    (9, "the driver programmed the GPU wrongly", "driver", Action.UPDATE_DRIVER),
    (11, "invalid or corrupted command stream", "application, driver, system", _APP),
    (12, "the driver failed to handle an exception of the GPU", "driver", Action.UPDATE_DRIVER),
    (13, "exception of the compute engine, such as an access out of bounds or an illegal instruction", _ANY, _APP),
    (14, "test message of the driver", "driver", Action.NOTHING),
    (16, "the display engine hung", "driver", Action.CONTACT_SUPPORT),
    (18, "bus mastering is off in the PCI configuration", "driver", Action.CONTACT_SUPPORT),
    (19, "error of the display engine", "driver", Action.CONTACT_SUPPORT),
    (range(20, 23), "invalid or corrupted command stream of a video engine", "driver, system", _APP),
    (24, "a semaphore of the GPU timed out", "application, driver, system", _APP),
    (25, "invalid or illegal command stream", "application, driver, system", _APP),
    (26, "the frame buffer timed out", "driver", Action.CONTACT_SUPPORT),
    (range(27, 30), "exception of a video processor", "driver", _APP),
    (30, "bad access to a semaphore", "driver", Action.CONTACT_SUPPORT),
    (31, "page fault: the GPU was told to use an address that is not mapped", _ANY, _APP),
    (32, "invalid or corrupted command stream, found by the DMA engine", "system, driver, application", _APP),
    (33, "error of an internal micro-controller", "driver", Action.CONTACT_SUPPORT),
    (range(34, 37), "exception of a video processor", "driver", _APP),
    (37, "unknown request to the context-switch firmware", "driver", Action.NOTHING),
    (38, "the context-switch firmware did not answer in time", "driver, hardware", Action.NOTHING),
    (range(39, 42), "exception of a copy engine", _HARD, _APP),
    (42, "exception of a video engine", "driver", _APP),
    (
        43,
        "the driver stopped a channel; the application is gone, the GPU is well",
        "application, driver",
        Action.NOTHING,
    ),
    (44, "fault of the compute engine during a context switch", "driver, hardware", Action.NOTHING),
    (45, "channels were removed, after another error or because the process ended", "another XID", Action.NOTHING),
    (46, "the GPU stopped processing", "driver, hardware", _RESET),
    (47, "exception of a video encoder", "driver", _APP),
    (48, "memory error of two bits, which ECC cannot correct", "hardware", _RESET),
    (54, "the auxiliary power of the board is not connected", "system", Action.CHECK_POWER),
    (56, "error of the display engine", "driver, hardware", Action.CONTACT_SUPPORT),
    (57, "training of the link to the video memory failed", "hardware, driver", Action.CONTACT_SUPPORT),
    (58, "the link to the video memory is unstable", "hardware, driver", Action.CONTACT_SUPPORT),
    (59, "error of an internal micro-controller", "driver", Action.CONTACT_SUPPORT),
    (60, "exception of the security or video processor", "driver", _APP),
    (61, "warning of an internal micro-controller", "driver, hardware", Action.CONTACT_SUPPORT),
    (62, "an internal micro-controller halted", "hardware, driver, system", _RESET),
    (63, "a bad memory page or row was put down for replacement, at the next reset", "hardware", Action.NOTHING),
    (64, "a bad memory page or row could not be put down for replacement", "hardware", _RESET),
    (65, "exception of a video encoder", _HARD, _APP),
    (66, "illegal register access by the driver", "driver, application", Action.NOTHING),
    (67, "illegal access by the driver", "driver, application", Action.NOTHING),
    (68, "exception of a video decoder", _HARD, _APP),
    (69, "the compute engine was given a command that it does not know", "application, driver, hardware", _APP),
    (range(70, 73), "error of a copy engine", _HARD, _APP),
    (73, "exception of a video encoder", _HARD, _APP),
    (74, "NVLink error: of this GPU, of its peer, or of the link between them", "hardware, system", Action.CHECK_LINKS),
    (range(75, 78), "error of a copy engine", _HARD, _APP),
    (78, "a virtual GPU could not be started", "driver", Action.UPDATE_DRIVER),
    (79, "the GPU fell off the bus", "hardware, system", Action.RESTART_HOST),
    (80, "data arrived corrupted at the GPU", "system, hardware, driver", _APP),
    (81, "error of the VGA subsystem", "hardware", Action.CONTACT_SUPPORT),
    (82, "error of a JPEG decoder", _HARD, _APP),
    (range(83, 85), "error of a video decoder", _HARD, _APP),
    (85, "error of a copy engine", _HARD, _APP),
    (86, "exception of the optical-flow engine", _HARD, _APP),
    (range(88, 90), "error of a video decoder", _HARD, _APP),
    (92, "many memory errors of one bit; each was corrected", "hardware", Action.NOTHING),
    (93, "the GPU's configuration memory is written more often than it is made for", "driver", Action.NOTHING),
    (94, "memory error, contained: only the process that touched the memory is hit", "hardware", _APP),
    (95, "memory error, not contained: every process on the GPU may be hit", "hardware", _RESET),
    (range(96, 99), "error of a video decoder", _HARD, _APP),
    (range(99, 106), "error of a JPEG decoder", _HARD, _APP),
    (range(106, 108), "test message of the out-of-band management", "system", Action.NOTHING),
    (108, "a peer's access over NVLink could not be translated", "application, driver", Action.NOTHING),
    (109, "a context switch did not end in time", "application, driver, hardware", _RESET),
    (110, "security fault", _HARD, _RESET),
    (range(111, 119), "error of the display", "driver", Action.CONTACT_SUPPORT),
    (119, "the GPU's system processor (GSP) did not answer the driver in time", "driver, hardware", _RESET),
    (120, "error of the GPU's system processor (GSP)", "driver, hardware", _RESET),
    (121, "error of the chip-to-chip link to the CPU; it was corrected or retried", "hardware", Action.NOTHING),
    (122, "the GPU's flash memory could not be read", _HARD, Action.CONTACT_SUPPORT),
    (123, "the GPU's flash memory could not be written", _HARD, Action.CONTACT_SUPPORT),
    (124, "the GPU's flash memory could not be erased", _HARD, Action.CONTACT_SUPPORT),
    (125, "the GPU's configuration memory has a broken file system", _HARD, Action.CONTACT_SUPPORT),
    (range(126, 136), "error of a copy engine", _HARD, _APP),
    (136, "training of an NVLink failed", "hardware, system", _RESET),
    (
        137,
        "a peer's access over NVLink was refused: the address or the right was wrong",
        _ANY,
        Action.NOTHING,
    ),
    (139, "error of the second optical-flow engine", _HARD, _APP),
    (140, "memory error that ECC did not recover and that escaped", "hardware", _RESET),
    (141, "error in a fast path of CUDA", "application, driver", Action.NOTHING),
    (142, "exception of a video encoder", _HARD, Action.CONTACT_SUPPORT),
    (143, "the GPU could not be initialised", _HARD, _RESET),
    (144, "NVLink 5 error, in the unit that switches traffic (SAW)", "hardware, system", Action.CHECK_LINKS),
    (145, "NVLink 5 error, in the receiving unit (RLW)", "hardware, application, system", Action.CHECK_LINKS),
    (146, "NVLink 5 error, in the sending unit (TLW)", "hardware, system", Action.CHECK_LINKS),
    (147, "NVLink 5 error, in the crossbar unit (TREX)", "hardware, system", Action.CHECK_LINKS),
    (148, "NVLink 5 error, in the power control of a link (NVLPW)", "hardware, system", Action.CHECK_LINKS),
    (149, "NVLink 5 error, at the network interface of a link (NETIR)", "hardware, system", Action.CHECK_LINKS),
    (150, "NVLink 5 error, in the management engine (MSE)", "driver, hardware", Action.CHECK_LINKS),
    (151, "the keys of confidential computing could not be rotated", "driver, system", Action.RESTART_VM),
    (152, "the memory unit of the deep-learning accelerator faulted", "application, driver", Action.NOTHING),
    (153, "the deep-learning accelerator timed out", "application, driver", Action.NOTHING),
    (154, "the driver changed what it asks for to recover the GPU", "another XID", Action.NOTHING),
    (155, "NVLink error that software defines", "driver, application", _RESET),
    (156, "a part of the GPU was retired; it takes a reset", "hardware", _RESET),
    (157, "a bad part of the GPU could not be retired", "hardware", Action.CONTACT_SUPPORT),
    (158, "the GPU did not answer in time, fatally", "hardware, system", _RESET),
    (159, "error without data on the link to the CPU", "driver, hardware", Action.CONTACT_SUPPORT),
    (range(160, 162), "a channel was retired, or could not be", "driver, hardware", Action.NOTHING),
    (162, "the power-smoothing hardware works again", "hardware", Action.NOTHING),
    (163, "the power-smoothing hardware has stopped", "hardware", Action.NOTHING),
    (164, "the power-smoothing hardware is near the end of its life", "hardware", Action.NOTHING),
    (165, "the power-smoothing hardware has reached the end of its life", "hardware", Action.CONTACT_SUPPORT),
    (166, "traffic on an NVLink before its encryption was set up", "driver, system", Action.CONTACT_SUPPORT),
    (167, "a PCIe transfer did not end in time, fatally", "system, hardware", _RESET),
    (168, "the GPU offers less memory: errors in a protected region", "hardware", Action.CONTACT_SUPPORT),
    (169, "an internal security micro-controller halted", "driver, hardware", _RESET),
    (170, "unexpected NVLink interrupt in confidential computing", "driver, hardware", Action.CONTACT_SUPPORT),
    (range(171, 173), "details of a memory error that could not be corrected (see XID 48)", "hardware", Action.NOTHING),
)


def _expand() -> dict[int, Xid]:
    out = {}
    for codes, meaning, suspects, action in _LISTED:
        for code in (codes,) if isinstance(codes, int) else codes:
            out[code] = Xid(code, meaning, suspects, action)
    return out


CATALOGUE = _expand()
RECOVERY_CHANGED = 154
_NVLINK_5 = range(144, 151)


def look_up(code: int, text: str = "") -> Xid:
    """What this code means. `text` is the rest of its line in the kernel log, which for NVLink 5 says whether it was fatal."""
    found = CATALOGUE.get(code)
    if found is None:
        return Xid(code, "NVIDIA documents no meaning", "unknown", Action.CONTACT_SUPPORT)
    if code in _NVLINK_5 and not is_fatal(text):
        return Xid(code, found.meaning, found.suspects, Action.NOTHING)
    return found


def is_fatal(text: str) -> bool:
    """Whether a line of NVLink 5 or of an NVSwitch calls itself fatal."""
    words = text.lower().replace(",", " ").split()
    return "fatal" in words
