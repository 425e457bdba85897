"""Checks for public network addresses, so that no public host can redirect a client into a private network."""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

import anyio

__all__ = ["PrivateAddressError", "check_is_public", "is_public"]

#: The well-known prefix of NAT64 (RFC 6052): the last 32 bits are an IPv4 address.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class PrivateAddressError(Exception):
    """A public host redirected a read to an address that is not public.

    Attributes:
        host: name of the redirect's target.
        address: IP address of the target.
    """

    def __init__(self, host: str, address: str) -> None:
        super().__init__(f"{host} is {address}")
        self.host = host
        self.address = address


def is_public(address: str) -> bool:
    """Return whether an IP address is public.

    Loopback, link-local, private, shared (RFC 6598), multicast and reserved addresses are not public. An IPv6 address
    that embeds an IPv4 address is public if the IPv4 address is.

    Args:
        address: an IP address as text, with or without an IPv6 zone. Any other text is not public.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        parsed = _carried(parsed) or parsed
    return parsed.is_global and not parsed.is_multicast


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


async def check_is_public(host: str, port: int) -> None:
    """Resolve a host and check that all its addresses are public.

    Args:
        host: a name or an address, in any form that the system's resolver accepts: ``0x7f000001`` and ``2130706433``
            are 127.0.0.1.
        port: port of the service.

    Raises:
        PrivateAddressError: one of the addresses is not public.
        OSError: the name has no address.
    """
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise OSError(f"{host!r} is not a host name") from None
    for _, _, _, _, address in found:
        if not is_public(str(address[0])):
            raise PrivateAddressError(host, str(address[0]))
