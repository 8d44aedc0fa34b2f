"""A whole daemon in this process, on free ports, as gRPC clients see it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from agent_stub.wire import stream_pb2 as wire
from collectord.config import Config, Grpc, Health, Http, Resources, Shutdown
from collectord.daemon import Daemon, StartError
from tests.raw_agent import RawAgent, batch, declare, gauge, hello, now_ms

QUICK = Config(
    grpc=Grpc(listen="127.0.0.1:0"),
    http=Http(listen="127.0.0.1:0"),
    health=Health(ping_interval_s=0.1),
    resources=Resources(poll_interval_s=0.2),
    shutdown=Shutdown(drain_s=2.0, reconnect_within_s=3.0),
)


@dataclass
class House:
    daemon: Daemon
    channel: grpc.aio.Channel
    stop: asyncio.Event
    running: asyncio.Task[None]

    async def latest(self, instance: str, metric: str) -> list:
        url = f"http://{self.daemon.http_address}/api/agents/{instance}/latest?metric={metric}"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.status == 200
            return (await response.json())["samples"]


async def start(config: Config) -> House:
    daemon, stop = Daemon(config), asyncio.Event()
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    running = asyncio.create_task(daemon.run(stop, lambda *_: ready.set_result(None)))
    await asyncio.wait([ready, running], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    return House(daemon, grpc.aio.insecure_channel(daemon.grpc_address), stop, running)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = await start(QUICK)
    yield made
    await made.channel.close()
    made.stop.set()
    await made.running


async def test_the_standard_health_service_says_serving(house: House) -> None:
    stub = health_pb2_grpc.HealthStub(house.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services(house: House) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(house.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([request])):
        names = {service.name for service in answer.list_services_response.service}
        assert {"collectord.v1.Collector", "grpc.health.v1.Health"} <= names
        break


async def test_welcome_tells_the_intervals_and_limits(house: House) -> None:
    agent = await RawAgent(house.channel).welcomed()
    welcome = agent.heard[0].welcome
    assert (welcome.flush_interval_ms, welcome.full_interval_ms, welcome.ping_interval_ms) == (150, 10_000, 100)
    assert (welcome.limits.message_bytes, welcome.limits.series) == (4 << 20, 20_000)


async def test_a_sample_is_visible_over_http_and_acknowledged(house: House) -> None:
    agent = await RawAgent(house.channel).welcomed(hello("i1"))
    await agent.send(declare(gauge(1, "depth", "By", kind="x")))
    await agent.send(batch(1, [1], [42.0]))
    await agent.acked(1)
    [sample] = await house.latest("i1", "depth_bytes")
    assert sample["value"] == 42.0
    assert sample["labels"] == {"instance": "i1", "job": "raw", "kind": "x"}


async def test_an_agent_that_can_be_polled_is_polled_at_the_daemons_interval(house: House) -> None:
    able = await RawAgent(house.channel).welcomed(hello(capabilities=[wire.CAPABILITY_POLL]))
    unable = await RawAgent(house.channel).welcomed(hello())
    await able.until(lambda: sum(m.HasField("poll") for m in able.heard) >= 3, "polls")
    assert not any(m.HasField("poll") for m in unable.heard)


@pytest.mark.parametrize(("strategy", "polls"), [("push", 0), ("pull", 1)])
async def test_the_strategy_decides_whether_agents_are_polled(strategy: str, polls: int) -> None:
    made = await start(replace(QUICK, resources=Resources(strategy=strategy, poll_interval_s=60.0)))
    agent = await RawAgent(made.channel).welcomed(hello(capabilities=[wire.CAPABILITY_POLL]))
    await agent.until(lambda: agent.pings >= 4, "pings")
    assert sum(m.HasField("poll") for m in agent.heard) == polls
    await made.channel.close()
    made.stop.set()
    await made.running


async def test_agents_are_told_to_send_less_when_the_fleet_has_grown_and_more_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await RawAgent(house.channel).welcomed()
    for interval_ms in (1000, 150):
        monkeypatch.setattr(house.daemon.service, "flush_interval_ms", lambda told=interval_ms: told)
        await agent.until(
            lambda told=interval_ms: any(m.throttle.flush_interval_ms == told for m in agent.heard), "throttle"
        )
    assert sum(m.HasField("throttle") for m in agent.heard) == 2


async def test_an_agent_that_answers_pings_has_a_round_trip_and_is_up(house: House) -> None:
    agent = await RawAgent(house.channel).welcomed(hello("i1"))
    await agent.until(lambda: agent.pings >= 3, "pings")
    row = house.daemon.view.row("i1")
    assert row is not None
    assert row["rtt_ms"] is not None
    assert row["state"] in ("never-seen", "live")
    house.daemon.fleet.sweep(asyncio.get_running_loop().time() + 1, now_ms(), 0.1)
    assert (await house.latest("i1", "up"))[0]["value"] == 1.0


async def test_a_self_report_is_acknowledged_at_once_and_its_drops_are_shown(house: House) -> None:
    agent = await RawAgent(house.channel).welcomed(hello("i1"))
    await agent.send(declare(gauge(1)))
    await agent.send(batch(1, [1], [1.0]))
    drops = [wire.Drop(reason=wire.DROP_REASON_MEMORY, samples_total=7)]
    await agent.send(wire.AgentMessage(self_report=wire.SelfReport(drops=drops)))
    await agent.acked(1)
    row, detail = house.daemon.view.row("i1"), house.daemon.view.detail("i1")
    assert row is not None
    assert detail is not None
    assert row["dropped_total"] == 7
    assert detail["drops"] == {"memory": 7}


async def test_at_the_end_agents_are_asked_to_leave_and_the_daemon_waits_for_them() -> None:
    made = await start(QUICK)
    agent = await RawAgent(made.channel).welcomed()
    await agent.send(declare(gauge(1)))
    made.stop.set()
    drain = await agent.until(lambda: next((m.drain for m in agent.heard if m.HasField("drain")), None), "drain")
    assert (drain.reconnect_within_ms, drain.deadline_ms) == (3000, 2000)
    assert not made.running.done()
    await agent.send(batch(1, [1], [1.0]))
    await agent.send(wire.AgentMessage(goodbye=wire.Goodbye(kind=wire.GOODBYE_KIND_RECONNECT)))
    await agent.call.done_writing()
    await agent.acked(1)
    await asyncio.wait_for(made.running, 2)
    await made.channel.close()


async def test_while_draining_nobody_is_let_in(house: House) -> None:
    house.daemon.service.draining = True
    agent = RawAgent(house.channel)
    await agent.send(hello())
    refusal = await agent.refusal()
    assert refusal.reason == wire.REFUSAL_REASON_SHUTTING_DOWN
    assert refusal.retry_after_ms == 3000
    assert house.daemon.view.ready() == (False, "shutting down")


async def test_streams_over_the_limit_are_refused_with_a_time_to_come_back() -> None:
    made = await start(replace(QUICK, limits=replace(QUICK.limits, agents=2)))
    for _ in range(2):
        await RawAgent(made.channel).welcomed()
    third = RawAgent(made.channel)
    await third.send(hello())
    refusal = await third.refusal()
    assert refusal.reason == wire.REFUSAL_REASON_OVERLOADED
    assert refusal.retry_after_ms > 0
    assert "limits.agents" in refusal.text
    assert await third.status() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await made.channel.close()
    made.stop.set()
    await made.running


@pytest.mark.parametrize("listener", ["grpc", "http"])
async def test_a_port_in_use_is_named_with_what_to_do(house: House, listener: str) -> None:
    taken = house.daemon.grpc_address if listener == "grpc" else house.daemon.http_address
    section = Grpc(listen=taken) if listener == "grpc" else Http(listen=taken)
    with pytest.raises(StartError, match=rf"{listener}\.listen.*another program.*--{listener} HOST:PORT"):
        await start(replace(QUICK, **{listener: section}))
