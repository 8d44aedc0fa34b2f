"""How an instance ends, and what a later one makes of what it left: delivered, set aside, or counted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from agent_rig import MEMORY, SPOOL, Process

from agent_stub import spooler as module
from agent_stub.durable import Counts
from agent_stub.wire import stream_pb2 as pb


def test_an_end_takes_everything_unacked_to_disk(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.open()
    process.add(5)
    process.says()
    process.ack((2, 2))
    process.spooler.finish()
    process.spooler._run()
    assert process.spooler.is_over
    assert process.talk.pending.abandon() == Counts()
    later = Process(tmp_path, "i2")
    assert later.adopted().pending.held.ranges(0, 9) == [(1, 1), (3, 5)]


def test_an_end_with_everything_acked_leaves_nothing(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.add(5)
    process.passes(4)
    process.open()
    process.says()
    process.ack((1, 5))
    process.spooler.finish()
    process.spooler._run()
    assert list(process.folder.iterdir()) == []


def test_a_later_instance_delivers_what_a_killed_one_had_on_disk_under_its_uid_and_sequences(tmp_path: Path) -> None:
    killed = Process(tmp_path)
    killed.talk.hello.capabilities.append(pb.CAPABILITY_POLL)
    killed.open()
    killed.talk.lost()
    killed.add(6, values=2)
    killed.passes(4)
    killed.add(2)
    killed.die()
    later = Process(tmp_path, "i2")
    earlier = later.adopted()
    hello = later.open(earlier)
    assert (hello.agent, hello.instance, hello.backlog, hello.start_time_unix_ms) == ("a", "i1", True, 7)
    assert (hello.connection, hello.first_held_sequence, list(hello.capabilities)) == (2, 1, [])
    bodies = []
    while True:
        later.work()
        message = later.one(earlier)
        if message is None:
            break
        bodies.append(message)
    declared = {s.ref for m in bodies for s in m.declare.series}
    assert declared == {1, 2}
    assert [m.sequence for m in bodies if m.sequence] == [1, 2, 3, 4, 5, 6]
    later.ack((1, 6), talk=earlier)
    assert later.spooler.adopted == []
    assert not any(later.folder.iterdir())
    assert later.talk.last_sequence == 0  # its own are apart


def test_a_living_sibling_keeps_its_folder_and_a_dead_one_is_adopted_within_a_minute(tmp_path: Path) -> None:
    one, other = Process(tmp_path, "i1"), Process(tmp_path, "i2")
    one.add(3)
    one.passes(4)
    other.passes(61)
    assert other.spooler.adopted == []
    one.die()
    other.passes(61)
    assert other.adopted().hello.instance == "i1"


def test_damage_found_at_the_start_is_reported_as_drops_of_the_living_and_the_rest_is_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 300)
    killed = Process(tmp_path)
    killed.add(10, values=4)
    killed.passes(4)
    killed.die()
    victim = sorted(killed.folder.rglob("*.spool"))[1]
    victim.write_bytes(b"rubbish" * 50)
    later = Process(tmp_path, "i2")
    lost = 10 - len(later.adopted().pending.held)
    assert 0 < lost < 10
    assert later.drops(SPOOL) == lost * 4
    assert [t for t in later.problems.texts if "set aside" in t]
    assert len(list(later.folder.glob("*.damaged"))) == 1  # nothing whole was in it
    later.die()
    third = Process(tmp_path, "i3")
    assert third.drops(SPOOL) == 0  # counted once


def test_damage_is_counted_by_the_first_who_finds_it_alone(tmp_path: Path) -> None:
    killed = Process(tmp_path)
    killed.add(10, values=4)
    killed.passes(4)
    killed.die()
    (victim,) = killed.folder.rglob("*.spool")
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    second = Process(tmp_path, "i2")
    assert second.drops(SPOOL) == 4
    second.die()
    third = Process(tmp_path, "i3")
    assert third.drops(SPOOL) == 0
    assert len(third.adopted().pending.held) == 9


def test_no_corruption_at_any_place_keeps_a_later_instance_from_starting(tmp_path: Path) -> None:
    killed = Process(tmp_path / "first")
    killed.add(4)
    killed.passes(4)
    killed.open()
    killed.says()
    killed.ack((2, 2))
    killed.passes(3)
    killed.die()
    for name in ("0000000001.spool", "BOOKMARK", "LOCK"):
        size = (killed.folder / "i1" / name).stat().st_size
        for at in range(0, size + 1, 7):
            where = tmp_path / f"{name}-{at}"
            shutil.copytree(killed.folder.parent, where)
            path = where / "a" / "i1" / name
            data = bytearray(path.read_bytes() or b"x")
            data[min(at, len(data) - 1)] ^= 0x55
            path.write_bytes(data)
            later = Process(where, "i2")
            later.add()
            later.open()
            assert later.says() == [1], (name, at)
            for shelf in list(later.spooler.adopted):
                later.open(shelf.talk)
                assert set(later.says(shelf.talk)) <= {1, 2, 3, 4}, (name, at)
            later.die()


STRANGE = {
    "a file where folders are": lambda a: (a / "note.txt").write_text("x"),
    "an empty folder": lambda a: (a / "empty").mkdir(),
    "a folder that was being made": lambda a: (a / ".i7.12345678").mkdir(),
    "a folder where a file should be": lambda a: (a / "i8" / "0000000001.spool").mkdir(parents=True),
    "a lock that is a folder": lambda a: (a / "i9" / "LOCK").mkdir(parents=True),
    "a file from a later version": lambda a: (a / "i5").mkdir() or (a / "i5/0000000001.spool").write_bytes(b"CDSPOOL\x02x"),
    "foreign files beside": lambda a: (a / "i6").mkdir() or (a / "i6/notes").write_text("x"),
}  # fmt: skip


@pytest.mark.parametrize("what", STRANGE)
def test_strange_things_in_the_folder_are_survived(tmp_path: Path, what: str) -> None:
    (tmp_path / "a").mkdir()
    STRANGE[what](tmp_path / "a")
    process = Process(tmp_path)
    process.add(3)
    process.passes(4)
    process.open()
    assert process.says() == [1, 2, 3]


def test_many_dead_instances_are_adopted_a_few_at_a_time_until_all_are_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ADOPTED", 3)
    for number in range(8):
        dead = Process(tmp_path / "elsewhere", f"dead{number}")
        dead.add(2)
        dead.passes(4)
        dead.die()
        shutil.move(str(tmp_path / "elsewhere/a" / f"dead{number}"), str(tmp_path / "a" / f"dead{number}"))
    later = Process(tmp_path, "later")
    delivered = []
    while later.spooler.adopted:
        assert len(later.spooler.adopted) <= 3
        shelf = later.spooler.next_backlog()
        assert shelf is not None
        later.open(shelf.talk)
        delivered += [(shelf.talk.hello.instance, s) for s in later.says(shelf.talk)]
        later.ack((1, 9), talk=shelf.talk)
        later.passes(1)
    assert sorted(delivered) == [(f"dead{n}", s) for n in range(8) for s in (1, 2)]


def test_earlier_instances_make_room_before_the_living_and_all_together_stay_in_the_bound(tmp_path: Path) -> None:
    for number in range(3):
        dead = Process(tmp_path, f"i{number}", spool_bytes=200_000)
        dead.add(100, values=20)
        dead.passes(4)
        dead.die()
    later = Process(tmp_path, "later", spool_bytes=200_000)
    for _ in range(30):
        later.add(10, values=50)
        later.passes(1)
        assert later.disk_bytes() <= 200_000
    assert len(later.talk.pending.held) > 250
    assert later.drops(SPOOL) > 0
    assert len(later.spooler.adopted) < 3


def test_only_a_few_damaged_files_are_kept(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.folder.mkdir()
    for number in range(10):
        (process.folder / f"old-{number:010}.damaged").write_bytes(b"x" * 100)
    process.add()
    process.passes(4)
    assert [n for n in process.files() if "damaged" in n] == [f"old-{n:010}.damaged" for n in range(6, 10)]


def test_drops_of_a_killed_instance_are_in_the_report_of_its_backlog(tmp_path: Path) -> None:
    killed = Process(tmp_path)
    killed.talk.drop(MEMORY, Counts(samples=5, logs=1))
    killed.add()
    killed.passes(4)
    killed.die()
    later = Process(tmp_path, "i2")
    earlier = later.adopted()
    later.open(earlier)
    report = later.one(earlier)
    assert report is not None
    assert [(d.reason, d.samples_total, d.logs_total) for d in report.self_report.drops] == [(MEMORY, 5, 1)]


def test_after_a_new_uid_what_is_left_on_disk_is_delivered_under_it(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.add(2)
    process.passes(4)
    process.talk.rename("other")
    process.add(2)
    process.passes(4)
    process.die()
    later = Process(tmp_path, "i2")
    assert later.adopted().hello.instance == "other"
    assert later.adopted().pending.held.ranges(0, 9) == [(1, 4)]


def test_the_order_is_by_sequence_however_the_clock_jumps(tmp_path: Path) -> None:
    process = Process(tmp_path)
    times = [5000, 9000, 1000, 1000, 7_200_000, 2000]
    for time_ms in times:
        process.talk.batch(pb.Batch(time_unix_ms=time_ms, refs=[1], values=[1.0]))
    process.passes(4)
    process.die()
    later = Process(tmp_path, "i2")
    earlier = later.adopted()
    later.open(earlier)
    said = []
    while True:
        later.work()
        message = later.one(earlier)
        if message is None:
            break
        said += [message.batch.time_unix_ms] if message.sequence else []
    assert said == times


def test_a_monotonic_clock_that_stands_still_or_leaps_only_changes_when(tmp_path: Path) -> None:
    process = Process(tmp_path)
    for leap_s in (0.0, 0.0, 86400.0, 0.0):
        process.add()
        process.now_s += leap_s
        process.spooler.tick(process.now_s)
        process.work()
    process.open()
    assert sorted(process.says()) == [1, 2, 3, 4]
