"""From a request to its handler, and from how the handler ended to a status."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
import structlog

from collectord.http2 import compression
from collectord.http2.context import Context
from collectord.http2.request import Request
from collectord.http2.status import CallError
from collectord.http2.stream import Stream

log = structlog.get_logger("http2")

_MOST_DETAILS = 1024  # characters of an exception's text


class Requests:
    """A request stream as handlers iterate over it."""

    __slots__ = ("_read",)

    def __init__(self, context: Context) -> None:
        self._read = context.read

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> Any:
        message = await self._read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message


def find(
    request: Request, registered: Mapping[str, grpc.RpcMethodHandler], generic: Iterable[grpc.GenericRpcHandler]
) -> grpc.RpcMethodHandler:
    """Raises CallError when nobody answers this."""
    handler = registered.get(request.method)
    for one in generic:
        handler = handler or one.service(request)
    if handler is None:
        raise CallError(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    if request.encoding not in compression.ACCEPTED:
        expected = ", ".join(compression.ACCEPTED)
        details = f"got grpc-encoding {request.encoding!r}, expected one of {expected}"
        raise CallError(grpc.StatusCode.UNIMPLEMENTED, details)
    return handler


def prepare(stream: Stream, handler: grpc.RpcMethodHandler, encoding: str, most_bytes: int) -> None:
    """Say how the stream's messages are read and written."""
    stream.sender.encode = handler.response_serializer
    stream.receiver.decode = handler.request_deserializer
    if encoding != compression.IDENTITY:
        stream.receiver.inflates = True
        stream.receiver.decode = partial(_inflate, stream, handler.request_deserializer, encoding, most_bytes)


def _inflate(
    stream: Stream, deserialize: Callable[[bytes], Any] | None, encoding: str, most_bytes: int, message: bytes
) -> Any:
    """Ends the call and cancels who reads when that fails, as for any message that cannot be taken."""
    if type(message) is compression.Compressed:
        try:
            message = compression.inflate(message, encoding, most_bytes)
        except CallError as error:
            stream.fail(error.code, error.details)
            raise asyncio.CancelledError(error.details) from error
    return message if deserialize is None else deserialize(message)


def start(stream: Stream, handler: grpc.RpcMethodHandler, context: Context) -> Coroutine[Any, Any, None]:
    """What the call's task runs: a stream handler's own coroutine, if it is one, with no step between it and reads."""
    behaviour = _behaviour(handler)
    if handler.request_streaming and handler.response_streaming and inspect.iscoroutinefunction(behaviour):
        own: Coroutine[Any, Any, None] = behaviour(Requests(context), context)
        return own
    return _answer(stream, handler, context)


async def _answer(stream: Stream, handler: grpc.RpcMethodHandler, context: Context) -> None:
    request: Any = Requests(context) if handler.request_streaming else await context.read()
    if request is grpc.aio.EOF:
        raise CallError(grpc.StatusCode.INTERNAL, "got no request message, expected one")
    await _reply(stream, handler, context, _behaviour(handler)(request, context))


async def _reply(stream: Stream, handler: grpc.RpcMethodHandler, context: Context, result: Any) -> None:
    """Write what the handler yields, or returns where one reply is expected."""
    if hasattr(result, "__aiter__"):
        async with aclosing(result) as replies:
            async for reply in replies:
                await context.write(reply)
        return
    reply = await result
    if not handler.response_streaming and not stream.closed and context.code_set is grpc.StatusCode.OK:
        await context.write(b"" if reply is None and stream.sender.encode is None else reply)


def conclude(stream: Stream, context: Context, task: asyncio.Task[None], method: str) -> None:
    """End the call as its handler ended. The stream may be closed already; then nobody hears it."""
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    if error is None:
        stream.finish(context.code_set, context.details_set, context.trailing_metadata())
    elif isinstance(error, asyncio.CancelledError):
        stream.finish(grpc.StatusCode.CANCELLED, "the handler was cancelled")
    elif isinstance(error, CallError):
        stream.finish(error.code, error.details)
    elif context.code_set is not grpc.StatusCode.OK:
        stream.finish(context.code_set, context.details_set, context.trailing_metadata())
    elif not (stream.closed and isinstance(error, grpc.aio.BaseError)):  # which is abort(), or a client that is gone
        log.error("a handler raised", method=method, exc_info=error)
        stream.finish(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}"[:_MOST_DETAILS])


def _behaviour(handler: grpc.RpcMethodHandler) -> Callable[[Any, Context], Any]:
    kinds = {
        (False, False): handler.unary_unary,
        (False, True): handler.unary_stream,
        (True, False): handler.stream_unary,
        (True, True): handler.stream_stream,
    }
    behaviour: Callable[[Any, Context], Any] = kinds[handler.request_streaming, handler.response_streaming]
    return behaviour
