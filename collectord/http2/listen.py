"""Listening sockets: every address of a name, one port, nobody else's."""

from __future__ import annotations

import asyncio
import errno
import socket

BACKLOG = 1024  # a fleet that comes back at once
_NO_SUCH_ADDRESS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}  # a name may have addresses that this machine lacks


async def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets on all addresses of `host`, on the same port, chosen by the first if it is 0. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    error: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            try:
                sockets.append(_bind_one(family, (address[0], port, *address[2:])))
            except OSError as failed:
                if failed.errno not in _NO_SUCH_ADDRESS:
                    raise
                error = failed
            else:
                port = sockets[-1].getsockname()[1]
    except OSError:
        _close(sockets)
        raise
    if not sockets and error is not None:
        raise error
    return sockets


def _bind_one(family: int, address: tuple[object, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")  # [::] is every address
        made.setblocking(False)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made


def _close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()
