"""A server that reads messages and answers one in 64, on collectord's HTTP/2 or on grpc.aio: what the stream bench measures.

`python -m bench.sink SERVER`; it prints its port as the answer to `listen`, and counts messages.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop

from bench.commands import Answer, serve
from collectord.http2 import Server

OURS, GRPC_AIO = "collectord", "grpc.aio"
PATH = "/bench.Sink/Stream"
ANSWER_EVERY = 64


class Sink(grpc.GenericRpcHandler):  # type: ignore[misc]
    """One handler for whatever is called."""

    def __init__(self) -> None:
        self.messages = 0
        self._handler = grpc.stream_stream_rpc_method_handler(self._stream)

    def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """gRPC asks this for every call."""
        return self._handler

    async def _stream(self, _requests: AsyncIterator[bytes], context: Any) -> None:
        read, of_stream = context.read, 0
        while await read() is not grpc.aio.EOF:
            self.messages += 1
            of_stream += 1
            if not of_stream % ANSWER_EVERY:
                await context.write(b"ack")


async def _listen(kind: str, sink: Sink) -> tuple[object, int]:
    """A server, which ends when nobody refers to it, and its port."""
    if kind == OURS:
        server = Server()
        server.add_generic_rpc_handlers((sink,))
        return server, await server.listen("127.0.0.1", 0)
    peer = grpc.aio.server(handlers=(sink,))
    port = peer.add_insecure_port("127.0.0.1:0")
    await peer.start()
    return peer, port


async def main(kind: str) -> None:
    """Serve until `close`."""
    sink = Sink()
    _server, port = await _listen(kind, sink)

    async def listen() -> Answer:
        return {"port": port}

    async def count() -> Answer:
        return {"messages": sink.messages}

    async def close() -> Answer:
        return {}

    await serve({"listen": listen, "count": count, "close": close}, lambda: "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", choices=(OURS, GRPC_AIO))
    uvloop.run(main(parser.parse_args().server))
