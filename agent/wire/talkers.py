"""Who talks to a subject, as it travels: two sketches as Apache DataSketches serialises them, and how strictly they are read.

That library is C++ and was not made for bytes of strangers: a header may ask it for gigabytes. So whatever comes from outside is
read here first, to the last byte, and only what the agent could have made goes on. This file does not need the library.
"""

from __future__ import annotations

import math
import socket
import struct
from dataclasses import dataclass

import numpy as np

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import TEXT_MAX, Malformed, check_name

MAP_LOG2 = 8
"""lg_max_map_size of the frequent items: the error is at most 3.5 / 2^8 = 1.4 % of all weight together."""
REMOTES_MAX = (3 << MAP_LOG2) // 4
"""Most remotes that a frequent-items sketch names; as long as there are no more, it is exact."""
HLL_LOG2 = 11
"""lg_config_k of the HyperLogLog: one standard error is 1.04 / 2^5.5 = 2.3 %; up to 192 remotes it is exact."""
WEIGHT_MAX = 1 << 40
"""Most weight of one interval. Weights are added in 64 bits: a million intervals cannot overflow them."""
SECONDS_MAX = 3600.0
TALKERS_MAX = 256
"""Most in one window: two for each of the instances that are watched at once."""

_ADDRESS_MAX = 45
_FREQUENT_HEAD = struct.Struct("<BBBBBBHIIQQ")
FREQUENT_ITEMS_BYTES_MAX = _FREQUENT_HEAD.size + REMOTES_MAX * (8 + 4 + _ADDRESS_MAX)
_HLL_HEAD = struct.Struct("<BBBBBBBB")
_HLL_REGISTERS = struct.Struct("<dddII")
HLL_BYTES_MAX = _HLL_HEAD.size + _HLL_REGISTERS.size + (1 << HLL_LOG2)
_LIST, _SET, _REGISTERS = range(3)
_HLL_8 = 2
_COMPACT = 8


@dataclass(frozen=True, slots=True)
class Talkers:
    """The remotes of one interval."""

    frequent_items: bytes
    hll: bytes
    seconds: float
    """Length of the interval."""


def check_talkers(message: pb.Talkers) -> None:
    """All but the subject, which is for those to check who know the node. Raises Malformed, naming the field."""
    where = f"window.talkers[{message.name[:TEXT_MAX]}]"
    check_name(f"{where}.name", message.name)
    if not 0 < message.seconds <= SECONDS_MAX:  # NaN fails too
        raise Malformed(f"{where}.seconds: {message.seconds} is not in (0, {SECONDS_MAX:g}]")
    try:
        _check_frequent_items(message.frequent_items)
    except (ValueError, struct.error) as error:
        raise Malformed(f"{where}.frequent_items: {error}") from error
    try:
        _check_hll(message.hll)
    except (ValueError, struct.error) as error:
        raise Malformed(f"{where}.hll: {error}") from error


def _check_frequent_items(data: bytes) -> None:
    if len(data) > FREQUENT_ITEMS_BYTES_MAX:
        raise ValueError(f"{len(data)} bytes; at most {FREQUENT_ITEMS_BYTES_MAX}")
    head = _FREQUENT_HEAD.unpack_from(data)
    now_log2, items, total, offset = head[4], head[7], head[9], head[10]
    # Longs of the head, version, family, size of the map; flags and what is unused.
    if (*head[:4], *head[5:7], head[8]) != (4, 1, 10, MAP_LOG2, 0, 0, 0):
        raise ValueError(f"not frequent items in a map of up to 2^{MAP_LOG2}")
    if not (3 <= now_log2 <= MAP_LOG2 and 0 < items <= (3 << now_log2) // 4):
        raise ValueError(f"{items} items in a map of 2^{now_log2}")
    weights = np.frombuffer(data, "<u8", items, _FREQUENT_HEAD.size)
    # The largest first: the sum of what is larger might not fit 64 bits.
    if not (offset <= total <= WEIGHT_MAX and weights.min() > 0 and weights.max() <= total and weights.sum() <= total):
        raise ValueError("the weights do not fit the total, or are too large")
    remotes = set()
    at = _FREQUENT_HEAD.size + weights.nbytes
    for _ in range(items):
        (length,) = struct.unpack_from("<I", data, at)
        remotes.add(_check_address(data[at + 4 : at + 4 + length], length))
        at += 4 + length
    if at != len(data) or len(remotes) != items:
        raise ValueError("a remote comes twice, or there is more than the items")


def _check_address(remote: bytes, length: int) -> bytes:
    """An IP address as inet_ntop(3) writes it: what is shown to a person can be nothing else."""
    if length > _ADDRESS_MAX or len(remote) != length:
        raise ValueError(f"a remote of {length} bytes")
    family = socket.AF_INET6 if b":" in remote else socket.AF_INET
    try:
        text = remote.decode("ascii")
        canonical = socket.inet_ntop(family, socket.inet_pton(family, text))
    except (OSError, ValueError):
        canonical = text = ""
    if not text or canonical != text:
        raise ValueError(f"{remote!r} is no IP address")
    return remote


def _check_hll(data: bytes) -> None:
    if len(data) > HLL_BYTES_MAX:
        raise ValueError(f"{len(data)} bytes; at most {HLL_BYTES_MAX}")
    longs, version, family, size_log2, array_log2, flags, few, mode = _HLL_HEAD.unpack_from(data)
    expected = {_LIST: 2, _SET: 3, _REGISTERS: 10}.get(mode & 3)
    if (longs, version, family, size_log2, mode >> 2, flags) != (expected, 1, 7, HLL_LOG2, _HLL_8, _COMPACT):
        raise ValueError(f"not a compact HyperLogLog of 2^{HLL_LOG2} registers of 8 bits")
    if mode & 3 == _LIST:
        _check_coupons(data, _HLL_HEAD.size, few, array_log2 == 3 and few <= 8)
    elif mode & 3 == _SET:
        (count,) = struct.unpack_from("<I", data, _HLL_HEAD.size)
        # The array is three quarters full at most.
        fits = few == 0 and 5 <= array_log2 <= HLL_LOG2 - 3 and 4 * count <= 3 << array_log2
        _check_coupons(data, _HLL_HEAD.size + 4, count, fits)
    else:
        _check_registers(data, array_log2, few)


def _check_coupons(data: bytes, start: int, count: int, fits: bool) -> None:
    if not fits or not count or len(data) != start + 4 * count:
        raise ValueError(f"{len(data)} bytes for {count} coupons")
    coupons = np.frombuffer(data, "<u4", count, start)
    if (coupons >> 26 == 0).any() or len(np.unique(coupons)) != count:
        raise ValueError("a coupon is empty or comes twice")


def _check_registers(data: bytes, array_log2: int, lowest: int) -> None:
    if len(data) != HLL_BYTES_MAX or array_log2:
        raise ValueError(f"{len(data)} bytes; with registers it is {HLL_BYTES_MAX}")
    distinct, high, low, zeros, exceptions = _HLL_REGISTERS.unpack_from(data, _HLL_HEAD.size)
    registers = np.frombuffer(data, np.uint8, offset=_HLL_HEAD.size + _HLL_REGISTERS.size)
    if lowest or exceptions or zeros != (registers == 0).sum() or registers.max() > 63:
        raise ValueError("the registers do not fit their head")
    # Of Flajolet et al. (2007), kept in two parts; exact in float64 but for the last bits.
    indicator = np.ldexp(1.0, -registers.astype(np.int64)).sum()
    # Each register was set by a remote of its own at the least.
    if not (math.isclose(high + low, indicator, rel_tol=1e-9) and (1 << HLL_LOG2) - zeros <= distinct <= WEIGHT_MAX):
        raise ValueError("the estimate does not fit the registers")
