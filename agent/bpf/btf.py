"""Where the running kernel keeps the fields that a program reads: member offsets from its BTF, through libbpf by ctypes.

Only the loader child uses this: the type information of a kernel takes tens of megabytes while it is open.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

_STRUCT, _UNION, _ENUM, _TYPEDEF, _FUNCTION = 4, 5, 6, 8, 12
_QUALIFIERS = {8, 9, 10, 11, 18}  # typedef, volatile, const, restrict, type tag


class _Type(ctypes.Structure):
    _fields_ = (("name", ctypes.c_uint32), ("info", ctypes.c_uint32), ("type", ctypes.c_uint32))


class _Member(ctypes.Structure):
    _fields_ = (("name", ctypes.c_uint32), ("type", ctypes.c_uint32), ("offset", ctypes.c_uint32))


class _Enumerator(ctypes.Structure):
    _fields_ = (("name", ctypes.c_uint32), ("value", ctypes.c_int32))


class KernelTypes:
    """The types of the running kernel. Raises OSError where libbpf or BTF is missing."""

    def __init__(self) -> None:
        self._libbpf = libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
        libbpf.btf__load_vmlinux_btf.restype = ctypes.c_void_p
        libbpf.btf__find_by_name_kind.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32)
        libbpf.btf__type_by_id.restype = ctypes.c_void_p
        libbpf.btf__type_by_id.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
        libbpf.btf__name_by_offset.restype = ctypes.c_char_p
        libbpf.btf__name_by_offset.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
        self._btf = libbpf.btf__load_vmlinux_btf()
        if not self._btf:
            raise OSError(ctypes.get_errno(), "the kernel's type information (BTF) cannot be read")

    def offset(self, struct: str, path: str) -> int:
        """Bytes from the start of `struct` to the member `path` ("a.b"; unnamed members are looked through).

        Raises LookupError where this kernel has no such member.
        """
        type_id = self._libbpf.btf__find_by_name_kind(self._btf, struct.encode(), _STRUCT)
        bits = 0
        for name in path.split("."):
            found = self._member(type_id, name) if type_id > 0 else None
            if found is None:
                raise LookupError(f"this kernel has no {struct}.{path}")
            type_id, member_bits = found
            bits += member_bits
        return bits // 8

    def tracepoint(self, name: str) -> int:
        """The type of a tracepoint's arguments. Raises LookupError where this kernel has no such tracepoint."""
        return self._named(f"btf_trace_{name}", _TYPEDEF)

    def function(self, name: str) -> int:
        """The type of a function of the kernel. Raises LookupError where this kernel has none."""
        return self._named(name, _FUNCTION)

    def enumerator(self, enum: str, name: str) -> int | None:
        """The value of one of its names; None where this kernel has none."""
        try:
            address, found = self._type(self._named(enum, _ENUM))
        except LookupError:
            return None
        values = (_Enumerator * (found.info & 0xFFFF)).from_address(address + ctypes.sizeof(_Type))
        named = {self._libbpf.btf__name_by_offset(self._btf, each.name): each.value for each in values}
        return named.get(name.encode())

    def _named(self, name: str, kind: int) -> int:
        type_id: int = self._libbpf.btf__find_by_name_kind(self._btf, name.encode(), kind)
        if type_id <= 0:
            raise LookupError(f"this kernel has no {name}")
        return type_id

    def _type(self, type_id: int) -> tuple[int, _Type]:
        address: int = self._libbpf.btf__type_by_id(self._btf, type_id)
        return address, _Type.from_address(address)

    def _members(self, type_id: int) -> Iterator[tuple[str, int, int]]:
        """Name, plain type and offset in bits of each member."""
        address, struct = self._type(type_id)
        first = address + ctypes.sizeof(_Type)
        for index in range(struct.info & 0xFFFF):
            member = _Member.from_address(first + index * ctypes.sizeof(_Member))
            has_bitfields = struct.info >> 31
            bits = member.offset & 0xFFFFFF if has_bitfields else member.offset
            name = self._libbpf.btf__name_by_offset(self._btf, member.name) or b""
            yield name.decode(), self._plain(member.type), bits

    def _plain(self, type_id: int) -> int:
        _, found = self._type(type_id)
        while (found.info >> 24) & 0x1F in _QUALIFIERS:
            type_id = found.type
            _, found = self._type(type_id)
        return type_id

    def _member(self, type_id: int, wanted: str) -> tuple[int, int] | None:
        for name, member_type, bits in self._members(type_id):
            if name == wanted:
                return member_type, bits
            if not name and (self._type(member_type)[1].info >> 24) & 0x1F in {_STRUCT, _UNION}:
                inner = self._member(member_type, wanted)
                if inner is not None:
                    return inner[0], bits + inner[1]
        return None
