"""A network driver's own counters, by the ioctl that ethtool(8) -S uses (linux/ethtool.h), without the program.

The three calls: how many counters (ETHTOOL_GSSET_INFO), their names (ETHTOOL_GSTRINGS), their values (ETHTOOL_GSTATS).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from typing import Dict

SIOCETHTOOL = 0x8946
GSSET_INFO, GSTRINGS, GSTATS = 0x37, 0x1B, 0x1D
STATISTICS = 1  # ETH_SS_STATS
NAME_BYTES, IFNAME_BYTES, IFREQ_BYTES = 32, 16, 40
MOST = 16384
"""More counters than any driver has: the kernel writes as many as it says, so the buffer is as large as it says."""


def statistics(interface: str) -> Dict[str, int]:
    """Counter to value, for an interface of the calling thread's network namespace; empty when its driver has none.

    Raises OSError for no such device, or no right to ask.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        try:
            answer = _call(door, interface, struct.pack("=IIQI", GSSET_INFO, 0, 1 << STATISTICS, 0))
            _, _, mask, number = struct.unpack_from("=IIQI", answer)
            if not mask >> STATISTICS & 1 or not 0 < number <= MOST:
                return {}
            named = _call(
                door, interface, struct.pack("=III", GSTRINGS, STATISTICS, number) + bytes(number * NAME_BYTES)
            )
            counted = _call(door, interface, struct.pack("=II", GSTATS, number) + bytes(8 * number))
        except OSError as error:
            # No driver's operations at all, or none for this: nothing to tell, and nothing wrong.
            if error.errno in (errno.EOPNOTSUPP, errno.ENODEV):
                return {}
            raise
    names = [
        named[12 + n * NAME_BYTES :][:NAME_BYTES].split(b"\0")[0].decode("ascii", "replace") for n in range(number)
    ]
    values = struct.unpack_from(f"={number}Q", counted, 8)
    return {name.strip(): value for name, value in zip(names, values) if name.strip()}


def _call(door: socket.socket, interface: str, request: bytes) -> bytes:
    buffer = ctypes.create_string_buffer(request, len(request))
    name = interface.encode()[: IFNAME_BYTES - 1].ljust(IFNAME_BYTES, b"\0")
    fcntl.ioctl(door, SIOCETHTOOL, struct.pack("=16sQ", name, ctypes.addressof(buffer)).ljust(IFREQ_BYTES, b"\0"))
    return buffer.raw
