"""The server with the real gRPC clients, synchronous and asyncio."""

from __future__ import annotations

import asyncio
import inspect
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from http2_rig import SOON_S, Rig, serving

from collectord.http2 import Server


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with serving() as made:
        yield made


@pytest.fixture
async def channel(rig: Rig) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(rig.address, options=[("grpc.max_receive_message_length", -1)]) as made:
        yield made


async def failed(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_synchronous_client_is_answered_in_all_four_kinds(rig: Rig) -> None:
    def talk() -> list[Any]:
        with grpc.insecure_channel(rig.address) as channel:
            return [
                channel.unary_unary("/t/unary")(b"one", timeout=SOON_S),
                list(channel.unary_stream("/t/replies")(b"3", timeout=SOON_S)),
                channel.stream_unary("/t/sum")(iter([b"1", b"2", b"3"]), timeout=SOON_S),
                list(channel.stream_stream("/t/stream")(iter([b"a", b"", b"c"]), timeout=SOON_S)),
                list(channel.stream_stream("/t/generator")(iter([b"a", b"b"]), timeout=SOON_S)),
            ]

    assert await asyncio.to_thread(talk) == [b"one", [b"0", b"1", b"2"], b"6", [b"a", b"", b"c"], [b"a", b"b"]]


async def test_a_stream_echoes_message_by_message(channel: Any) -> None:
    call = channel.stream_stream("/t/stream")()
    for number in range(100):
        await call.write(b"%d" % number)
        assert await call.read() == b"%d" % number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_384, 1 << 20, (4 << 20) - 5, 4 << 20])
async def test_a_message_of_any_size_comes_back_whole(channel: Any, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"z" * (size % 256)
    assert await channel.unary_unary("/t/unary")(data) == data


async def test_many_large_messages_on_one_stream_come_back_whole(channel: Any) -> None:
    call = channel.stream_stream("/t/stream")()
    for number in range(4):
        await call.write(bytes([number]) * (3 << 20))
        assert await call.read() == bytes([number]) * (3 << 20)


async def test_a_message_above_the_limit_is_resource_exhausted(channel: Any) -> None:
    error = await failed(channel.unary_unary("/t/unary")(b"x" * ((4 << 20) + 1)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "got a message of 4194305 bytes, expected at most 4194304" in error.details()


async def test_metadata_goes_both_ways(channel: Any) -> None:
    call = channel.unary_unary("/t/metadata")(b"", metadata=(("a", "b"), ("c-bin", b"\0\1\xff")))
    assert eval(await call) == [("a", "b"), ("c-bin", b"\0\1\xff")]
    assert tuple(await call.initial_metadata()) == (("first", "1"), ("first-bin", b"\1\2"))


async def test_the_peer_is_named_as_grpc_names_it(rig: Rig, channel: Any) -> None:
    await channel.unary_unary("/t/unary")(b"")
    kind, host, port = rig.handlers.contexts[0].peer().split(":")
    assert (kind, host, 1024 < int(port) < 65536) == ("ipv4", "127.0.0.1", True)


async def test_an_abort_gives_code_details_and_trailers(channel: Any) -> None:
    error = await failed(channel.unary_unary("/t/abort")("100 % schlüssig\n".encode()))
    assert error.code() is grpc.StatusCode.ABORTED
    assert error.details() == "100 % schlüssig\n"
    assert tuple(error.trailing_metadata()) == (("why", "so"), ("why-bin", b"\0\xff"))


async def test_a_code_that_was_set_ends_the_call(channel: Any) -> None:
    error = await failed(channel.unary_unary("/t/code")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "nothing there")
    assert tuple(error.trailing_metadata()) == (("k", "v"),)


async def test_a_handler_that_raises_is_unknown_and_the_server_goes_on(channel: Any) -> None:
    error = await failed(channel.unary_unary("/t/raise")(b""))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, "Unexpected <class 'ValueError'>: boom")
    assert await channel.unary_unary("/t/unary")(b"on") == b"on"


async def test_a_handler_that_sets_a_code_and_raises_gives_that_code(rig: Rig, channel: Any) -> None:
    health_pb2_grpc.add_HealthServicer_to_server(health_pb2_grpc.HealthServicer(), rig.server)
    error = await failed(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()))
    assert (error.code(), error.details()) == (grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")


async def test_an_unknown_method_is_unimplemented(channel: Any) -> None:
    assert (await failed(channel.unary_unary("/t/nothing")(b""))).code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_deadline_cancels_the_handler(rig: Rig, channel: Any) -> None:
    error = await failed(channel.unary_unary("/t/wait")(b"", timeout=0.1))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(rig.handlers.cancelled.wait(), SOON_S)
    assert 0 <= rig.handlers.contexts[0].time_remaining() < 0.1
    await rig.settled()


async def test_a_cancelled_call_cancels_its_handler_and_only_that(rig: Rig, channel: Any) -> None:
    call = channel.unary_unary("/t/wait")(b"")
    await asyncio.wait_for(rig.handlers.began.wait(), SOON_S)
    other = channel.stream_stream("/t/stream")()
    done = asyncio.Event()
    rig.handlers.contexts[0].add_done_callback(lambda _: done.set())
    call.cancel()
    await asyncio.wait_for(rig.handlers.cancelled.wait(), SOON_S)
    assert done.is_set()
    assert rig.handlers.contexts[0].cancelled()
    await other.write(b"on")
    assert await other.read() == b"on"


async def test_a_client_that_is_gone_is_an_error_to_write_to(rig: Rig) -> None:
    async with grpc.aio.insecure_channel(rig.address) as channel:
        call = channel.stream_stream("/t/stream")()
        await call.write(b"x")
        assert await call.read() == b"x"
    await asyncio.wait_for(rig.handlers.cancelled.wait(), SOON_S)
    context = rig.handlers.contexts[0]
    with pytest.raises(grpc.aio.BaseError):
        await context.write(b"y")
    with pytest.raises(grpc.aio.BaseError):
        await context.abort(grpc.StatusCode.ABORTED)
    assert await context.read() is grpc.aio.EOF
    await rig.settled()


async def test_many_streams_share_a_channel(rig: Rig, channel: Any) -> None:
    answers = await asyncio.gather(*(channel.unary_unary("/t/unary")(b"%d" % n) for n in range(500)))
    assert answers == [b"%d" % n for n in range(500)]
    await rig.settled()
    (protocol,) = rig.server.protocols
    assert protocol.connection.running == 0
    assert rig.server.shared.held_bytes == 0


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_understood(rig: Rig, compression: grpc.Compression) -> None:
    data = b"the same again " * 10_000
    async with grpc.aio.insecure_channel(rig.address, compression=compression) as channel:
        assert await channel.unary_unary("/t/unary")(data) == data
        call = channel.stream_stream("/t/stream")()
        for piece in (data, b"small", data):
            await call.write(piece)
            assert await call.read() == piece


async def test_a_bomb_of_gzip_is_resource_exhausted() -> None:
    gzip = grpc.Compression.Gzip
    async with (
        serving(most_message_bytes=1 << 16) as rig,
        grpc.aio.insecure_channel(rig.address, compression=gzip) as c,
    ):
        error = await failed(c.unary_unary("/t/unary")(bytes(1 << 20)))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "inflates to more than 65536 bytes" in error.details()


async def test_replies_that_a_client_does_not_read_wait(rig: Rig, channel: Any) -> None:
    call = channel.unary_unary("/t/large")(b"%d" % (8 << 20))
    assert len(await call) == 8 << 20
    await rig.settled()


async def test_stopping_lets_a_call_end_within_the_grace(rig: Rig, channel: Any) -> None:
    call = channel.unary_unary("/t/wait")(b"late")
    await asyncio.wait_for(rig.handlers.began.wait(), SOON_S)
    stopping = asyncio.create_task(rig.server.stop(SOON_S))
    await asyncio.sleep(0)
    rig.handlers.go_on.set()
    assert await call == b"late"
    await asyncio.wait_for(stopping, SOON_S)
    assert not rig.server.protocols
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection("127.0.0.1", rig.port)


async def test_stopping_without_grace_is_unavailable_and_cancels(rig: Rig, channel: Any) -> None:
    call = channel.unary_unary("/t/wait")(b"")
    await asyncio.wait_for(rig.handlers.began.wait(), SOON_S)
    await rig.server.stop(0)
    assert (await failed(call)).code() is grpc.StatusCode.UNAVAILABLE
    assert rig.handlers.cancelled.is_set()


async def test_health_is_checked_and_watched(rig: Rig, channel: Any) -> None:
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, rig.server)
    stub = health_pb2_grpc.HealthStub(channel)
    kinds = health_pb2.HealthCheckResponse
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == kinds.SERVING
    error = await failed(stub.Check(health_pb2.HealthCheckRequest(service="nothing")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == kinds.SERVING
    await servicer.enter_graceful_shutdown()
    assert (await watch.read()).status == kinds.NOT_SERVING
    watch.cancel()
    await rig.settled()


async def test_reflection_lists_the_services(rig: Rig, channel: Any) -> None:
    servicer = reflection.aio.ReflectionServicer(("grpc.health.v1.Health", reflection.SERVICE_NAME))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, rig.server)
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = {service.name for service in (await call.read()).list_services_response.service}
    assert listed == {"grpc.health.v1.Health", reflection.SERVICE_NAME}
    await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="grpc.health.v1.Health"))
    assert (await call.read()).file_descriptor_response.file_descriptor_proto
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


async def test_a_port_that_is_taken_is_an_error(rig: Rig) -> None:
    with pytest.raises(OSError, match="in use"):
        await rig.server.listen("127.0.0.1", rig.port)


@pytest.mark.parametrize(("host", "target"), [("localhost", "localhost"), ("::1", "[::1]"), ("::", "127.0.0.1")])
async def test_names_and_ipv6_are_listened_on(host: str, target: str) -> None:
    async with serving() as rig:
        port = await rig.server.listen(host, 0)
        async with grpc.aio.insecure_channel(f"{target}:{port}") as channel:
            assert await channel.unary_unary("/t/unary")(b"x", timeout=SOON_S) == b"x"
        expected = "ipv6:%5B::1%5D:" if host == "::1" else "ip"
        assert rig.handlers.contexts[0].peer().startswith(expected)


def certificate(folder: Path) -> tuple[Path, Path]:
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return key, cert


async def test_tls_is_served_with_alpn_and_refused_without(tmp_path: Path) -> None:
    key, cert = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    async with serving() as rig:
        port = await rig.server.listen("127.0.0.1", 0, ssl_context=context)
        credentials = grpc.ssl_channel_credentials(cert.read_bytes())
        options = [("grpc.ssl_target_name_override", "localhost")]
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
            data = b"x" * (2 << 20)
            assert await channel.unary_unary("/t/unary")(data, timeout=SOON_S) == data
        without = ssl.create_default_context(cafile=str(cert))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=without, server_hostname="localhost")
        assert await reader.read() == b""
        writer.close()
        assert rig.server.counts["no_alpn"] == 1


async def test_a_server_that_never_listened_stops() -> None:
    await Server().stop(0)


ON_UVLOOP = [
    test_many_large_messages_on_one_stream_come_back_whole,
    test_replies_that_a_client_does_not_read_wait,
    test_many_streams_share_a_channel,
    test_a_deadline_cancels_the_handler,
    test_a_cancelled_call_cancels_its_handler_and_only_that,
    test_stopping_without_grace_is_unavailable_and_cancels,
    test_health_is_checked_and_watched,
    test_names_and_ipv6_are_listened_on,
    test_tls_is_served_with_alpn_and_refused_without,
]


@pytest.mark.parametrize("test", ON_UVLOOP, ids=lambda test: test.__name__.removeprefix("test_"))
def test_it_holds_on_the_daemons_own_loop(test: Callable[..., Awaitable[None]], tmp_path: Path) -> None:
    async def run() -> None:
        options = [("grpc.max_receive_message_length", -1)]
        async with serving() as rig, grpc.aio.insecure_channel(rig.address, options=options) as channel:
            given = {"rig": rig, "channel": channel, "tmp_path": tmp_path, "host": "localhost", "target": "localhost"}
            await test(**{name: given[name] for name in inspect.signature(test).parameters})

    uvloop.run(run())
