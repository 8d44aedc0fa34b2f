"""gRPC over HTTP/2, the serving half, for asyncio: what the daemon uses of grpc.aio.server, at a fraction of its cost.

`README.md` beside this file names the rooms.
"""

from collectord.http2.server import Server

__all__ = ["Server"]
