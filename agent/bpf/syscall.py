"""The few bpf(2) commands that the agent gives itself, by ctypes: no library is loaded for them."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator

_NUMBER = {"x86_64": 321, "aarch64": 280}
_MAP_UPDATE, _MAP_DELETE, _PROGRAM_LOAD, _INFO, _RAW_TRACEPOINT_OPEN, _ENABLE_STATS = 2, 3, 5, 15, 17, 32
_RAW_TRACEPOINT, _TRACING = 17, 26
AT_TRACEPOINT, AT_FUNCTION = 23, 24
"""Where a typed program hangs: at a tracepoint, or at the entry of a function."""
_TYPE_ID_OFFSET = 108
_NAME_BYTES_MAX = 15
_LOG_BYTES = 1 << 20
_ATTRIBUTE_BYTES = 128
_MAP_LOOKUP_BATCH = 24
_BATCH = 1024
# Of struct bpf_prog_info.
_PROGRAM_INFO_BYTES, _RUN_TIME_OFFSET, _MISSES_OFFSET = 216, 192, 208

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attribute: bytes) -> int:
    """What bpf(2) answers. Raises OSError."""
    # The kernel takes an attribute longer than it knows, as long as the rest is zero.
    return _call(command, ctypes.create_string_buffer(attribute, _ATTRIBUTE_BYTES))


def _call(command: int, attribute: ctypes.Array[ctypes.c_char]) -> int:
    """The same for an attribute that the kernel also writes to."""
    number = _NUMBER.get(platform.machine())
    if number is None:
        raise OSError(f"eBPF is not supported on {platform.machine()}, only on {' and '.join(_NUMBER)}")
    answer: int = _libc.syscall(number, command, attribute, _ATTRIBUTE_BYTES)
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


def load_typed_program(name: str, code: bytes, place: int, type_id: int) -> int:
    """A descriptor of a program whose arguments are those of a type of the kernel, `AT_TRACEPOINT` or `AT_FUNCTION`.

    Raises OSError with what the verifier said last.
    """
    instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    where = ctypes.addressof(instructions), ctypes.addressof(licence)
    said = ctypes.create_string_buffer(_LOG_BYTES)
    short = name.encode()[:_NAME_BYTES_MAX]

    def load(level: int) -> int:
        log = (level, len(said), ctypes.addressof(said)) if level else (0, 0, 0)
        attribute = struct.pack("<IIQQIIQ8x16sII", _TRACING, len(code) // 8, *where, *log, short, 0, place)
        return _bpf(_PROGRAM_LOAD, attribute.ljust(_TYPE_ID_OFFSET, b"\0") + struct.pack("<I", type_id))

    try:
        return load(0)
    except OSError as error:
        refusal = error
    try:
        return load(1)
    except OSError:
        lines = [line for line in said.value.decode(errors="replace").splitlines() if "processed" not in line]
        raise OSError(refusal.errno, f"{name}: {refusal.strerror}: {lines[-1] if lines else ''}") from None


def attach_raw_tracepoint(name: str | None, program_fd: int) -> int:
    """A descriptor that keeps the program attached while it is open; no name: the program knows where.

    Raises OSError; FileNotFoundError: no such hook.
    """
    hook = ctypes.create_string_buffer((name or "").encode())
    return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(hook) if name else 0, program_fd))


def count_run_time() -> int:
    """While the descriptor is open the kernel counts the run time of every program. Raises OSError, as without CAP_SYS_ADMIN."""
    return _bpf(_ENABLE_STATS, struct.pack("<I", 0))


def program_run_ns(program_fd: int) -> int:
    """How long the program has run while that was counted, nanoseconds. Raises OSError."""
    return _program_info(program_fd, _RUN_TIME_OFFSET)


def program_misses(program_fd: int) -> int:
    """How often the kernel left it out, because it would have interrupted itself; 0 before Linux 5.12. Raises OSError."""
    return _program_info(program_fd, _MISSES_OFFSET)


def _program_info(program_fd: int, offset: int) -> int:
    info = ctypes.create_string_buffer(_PROGRAM_INFO_BYTES)
    _bpf(_INFO, struct.pack("<IIQ", program_fd, _PROGRAM_INFO_BYTES, ctypes.addressof(info)))
    return int(struct.unpack_from("<Q", info, offset)[0])


def map_lookup_batch(
    map_fd: int, key_bytes: int, value_bytes: int, entries_max: int
) -> Iterator[tuple[bytearray, bytearray]]:
    """All elements of a hash map, by `_BATCH` at the most: their keys and their values, one after the other.

    The map may change meanwhile: an element that stays is seen once. Ends after `entries_max`. Raises OSError.
    """
    keys, values = bytearray(key_bytes * _BATCH), bytearray(value_bytes * _BATCH)
    places = [ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer)) for buffer in (keys, values)]
    # Where the last batch ended: the kernel writes the number of a bucket there.
    at, begin, seen = ctypes.create_string_buffer(8), 0, 0
    while seen < entries_max:
        attribute = ctypes.create_string_buffer(
            struct.pack("<QQQQII", begin, ctypes.addressof(at), *places, _BATCH, map_fd), _ATTRIBUTE_BYTES
        )
        more = True
        try:
            _call(_MAP_LOOKUP_BATCH, attribute)
        except FileNotFoundError:
            more = False  # the end of the map
        (count,) = struct.unpack_from("<I", attribute, 32)
        seen, begin = seen + count, ctypes.addressof(at)
        yield keys[: count * key_bytes], values[: count * value_bytes]
        if not more:
            return
