"""The few bpf(2) commands that the agent gives itself, by ctypes: no library is loaded for them."""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_NUMBER = {"x86_64": 321, "aarch64": 280}
_MAP_UPDATE, _MAP_DELETE, _PROGRAM_LOAD, _INFO, _RAW_TRACEPOINT_OPEN, _ENABLE_STATS = 2, 3, 5, 15, 17, 32
_RAW_TRACEPOINT = 17
_ATTRIBUTE_BYTES = 128
# Of struct bpf_prog_info.
_PROGRAM_INFO_BYTES, _RUN_TIME_OFFSET = 208, 192

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attribute: bytes) -> int:
    """What bpf(2) answers. Raises OSError."""
    number = _NUMBER.get(platform.machine())
    if number is None:
        raise OSError(f"eBPF is not supported on {platform.machine()}, only on {' and '.join(_NUMBER)}")
    # The kernel takes an attribute longer than it knows, as long as the rest is zero.
    buffer = ctypes.create_string_buffer(attribute, _ATTRIBUTE_BYTES)
    answer: int = _libc.syscall(number, command, buffer, _ATTRIBUTE_BYTES)
    if answer < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return answer


def map_update(map_fd: int, key: bytes, value: bytes) -> None:
    """Set an element. Raises OSError."""
    keys, values = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    _bpf(_MAP_UPDATE, struct.pack("<IxxxxQQQ", map_fd, ctypes.addressof(keys), ctypes.addressof(values), 0))


def map_delete(map_fd: int, key: bytes) -> None:
    """Remove an element. Raises OSError, also where there is none."""
    keys = ctypes.create_string_buffer(key, len(key))
    _bpf(_MAP_DELETE, struct.pack("<IxxxxQ", map_fd, ctypes.addressof(keys)))


def load_raw_tracepoint_program(code: bytes) -> int:
    """A descriptor of a program given as instructions. Raises OSError."""
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    where = ctypes.addressof(instructions), ctypes.addressof(licence)
    return _bpf(_PROGRAM_LOAD, struct.pack("<IIQQ", _RAW_TRACEPOINT, len(code) // 8, *where))


def attach_raw_tracepoint(name: str, program_fd: int) -> int:
    """A descriptor that keeps the program attached while it is open. Raises OSError; FileNotFoundError: no such hook."""
    hook = ctypes.create_string_buffer(name.encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(hook), program_fd))


def count_run_time() -> int:
    """While the descriptor is open the kernel counts the run time of every program. Raises OSError, as without CAP_SYS_ADMIN."""
    return _bpf(_ENABLE_STATS, struct.pack("<I", 0))


def program_run_ns(program_fd: int) -> int:
    """How long the program has run while that was counted, nanoseconds. Raises OSError."""
    info = ctypes.create_string_buffer(_PROGRAM_INFO_BYTES)
    _bpf(_INFO, struct.pack("<IIQ", program_fd, _PROGRAM_INFO_BYTES, ctypes.addressof(info)))
    return int(struct.unpack_from("<Q", info, _RUN_TIME_OFFSET)[0])
