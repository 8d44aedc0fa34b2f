"""Messages between memory, disk and stream: what goes to disk when, comes back in which order, and is counted if it does not."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from agent_rig import MEMORY, SPOOL, Process

from agent_stub import spooler as module
from agent_stub.wire import stream_pb2 as pb


def test_nothing_is_written_while_acks_come_as_they_should(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.open()
    for second in range(1, 61):
        process.add()
        process.says()
        process.passes(1)
        if second % 2 == 0:
            process.ack((1, second - 1))
    assert process.disk.writes == 0
    assert not tmp_path.joinpath("a").exists()


def test_without_a_stream_messages_go_to_disk_when_they_are_two_seconds_old(tmp_path: Path) -> None:
    process = Process(tmp_path)
    for _ in range(10):
        process.add()
        process.passes(1)
    assert process.talk.pending.held.ranges(0, 99) == [(1, 8)]
    assert process.talk.pending_messages == 2
    process.passes(3)
    assert process.talk.pending.held.ranges(0, 99) == [(1, 10)]
    assert process.talk.pending_bytes == 0


def test_a_memory_that_is_half_full_goes_to_disk_at_once_and_nothing_is_dropped(tmp_path: Path) -> None:
    process = Process(tmp_path, limit_bytes=20_000)
    for _ in range(300):
        process.add(values=50)
        process.work()
        assert process.talk.pending_bytes <= 20_000
    assert process.talk.totals.drops == {}
    process.open()
    assert sorted(process.deliver()) == list(range(1, 301))


def test_on_a_new_stream_live_data_goes_first_and_the_disk_is_read_a_piece_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 2000)
    monkeypatch.setattr("agent_stub.conversation.FLIGHT_BYTES", (4000, 4000))
    process = Process(tmp_path)
    process.add(200, values=3)
    process.passes(4)
    process.add(2)
    hello = process.open()
    assert hello.first_held_sequence == 1
    said = process.says()
    assert said[:2] == [201, 202]
    assert said[2:] == list(range(1, len(said) - 1))  # in order, and then it waits for acks
    assert 10 < len(said) < 90
    assert 4000 <= process.talk.pending.flight_bytes < 4100
    while process.talk.pending.held:
        process.add()
        newest = process.talk.last_sequence
        process.ack((1, 202))
        said = process.says()
        assert said[0] == newest
    assert process.talk.totals.acked == 200 * 3 + 2
    assert process.files() == []


def test_when_all_that_was_read_back_is_said_a_report_asks_for_its_acks(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.add(3)
    process.passes(4)
    process.open()
    bodies = []
    while (message := process.one()) is not None or process.talk.pending.wants_reading:
        process.work()
        bodies += [message.WhichOneof("body")] if message is not None else []
    assert bodies[-4:] == ["batch", "batch", "batch", "self_report"]


def test_a_flush_that_is_due_goes_before_the_next_piece_of_a_backlog(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.add(5)
    process.passes(4)
    process.open()
    while process.talk.next_message(process.now_s) is not None:
        pass
    process.work()
    first = pb.AgentMessage.FromString(process.talk.next_backlog(process.now_s) or b"")
    process.add()
    second = pb.AgentMessage.FromString(process.talk.next_message(process.now_s) or b"")
    assert (first.sequence, second.sequence) == (1, 6)


def test_on_a_stream_whose_acks_do_not_come_messages_go_to_disk_and_are_said_once(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.open()
    said = []
    for _ in range(10):
        process.add()
        said += process.says()
        process.passes(1)
    assert process.talk.pending.held.ranges(0, 99) == [(1, 7)]  # two pings and a second, not two seconds
    assert said + process.says() == list(range(1, 11))
    process.talk.lost()
    process.open()
    assert process.says() == [8, 9, 10, 1, 2, 3, 4, 5, 6, 7]
    assert process.talk.totals.sent == 10  # first sendings only


def test_messages_that_went_to_disk_unsaid_count_as_sent_when_they_are(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.add(4)
    process.passes(4)
    process.add(2)
    process.open()
    process.says()
    assert process.talk.totals.sent == 6


def test_what_is_acked_leaves_the_disk_file_by_file_and_the_bookmark_knows_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 1)
    process = Process(tmp_path)
    process.add(6)
    process.passes(4)
    process.open()
    process.says()
    process.ack((1, 2), (5, 5))
    assert process.files() == [f"i1/{n:010}.spool" for n in (3, 4, 6)]
    process.passes(3)
    process.die()
    later = Process(tmp_path, "i2")
    assert later.adopted().pending.held.ranges(0, 99) == [(3, 4), (6, 6)]
    assert later.talk.totals.drops == {}


def test_a_welcome_that_knows_all_that_is_on_disk_ends_it(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.add(50)
    process.passes(4)
    process.open(received=[pb.SequenceRange(first=1, last=50)])
    assert process.says() == []
    assert process.files() == []
    assert (process.talk.totals.acked, process.talk.is_acked(50)) == (50, True)


def test_what_is_acked_while_it_is_written_is_not_delivered_from_disk(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.open()
    process.add(3)
    process.says()
    acked = pb.CollectorMessage(ack=pb.Ack(ranges=[pb.SequenceRange(first=1, last=2)])).SerializeToString()
    process.disk.meanwhile = lambda: process.talk.receive(acked, process.now_s, 0)
    process.passes(5)
    assert process.talk.pending.held.ranges(0, 9) == [(3, 3)]
    assert process.talk.totals.acked == 2
    process.passes(3)
    process.die()
    assert Process(tmp_path, "i2").adopted().pending.held.ranges(0, 9) == [(3, 3)]


def test_what_is_on_its_way_to_disk_is_not_dropped_by_a_full_memory(tmp_path: Path) -> None:
    process = Process(tmp_path, limit_bytes=5000)
    process.add(15)
    process.disk.meanwhile = lambda: process.add(10) if process.disk.writes == 1 else None
    process.passes(4)
    assert process.disk.writes > 1
    dropped = process.drops(MEMORY)
    process.open()
    said = process.says()
    assert set(range(1, 16)) <= set(said)
    assert len(said) + dropped == 25


def test_a_stream_that_breaks_while_the_disk_is_read_gets_it_all_again(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.add(4)
    process.passes(4)
    process.open()
    pending = process.talk.pending
    (file,) = process.spooler._shelves()[0].spool.files
    process.spooler._shelves()[0].spool.roll()
    first_two = process.spooler._shelves()[0].spool.load(file).messages[:2]
    after = pending.read_to
    pending.skip(3)  # meanwhile another stream has got further
    assert pending.restore(after, 1, 2, first_two).samples == 0
    assert pending.front(backlog=True) is None


def test_a_hole_in_the_row_of_files_is_no_loss_to_a_later_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 1)
    process = Process(tmp_path)
    process.add(6)
    process.passes(4)
    process.open()
    process.says()
    process.ack((6, 6))  # writes a bookmark
    process.ack((3, 3))  # too soon for the next
    process.die()
    later = Process(tmp_path, "i2")
    assert later.adopted().pending.held.ranges(0, 9) == [(1, 2), (4, 5)]
    assert later.talk.totals.drops == {}


def test_flush_waits_for_what_is_on_disk_too(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.add(3)
    process.passes(4)
    process.add()
    process.open()
    process.says()
    process.ack((4, 4))
    assert not process.talk.is_acked(4)
    process.ack((1, 3))
    assert process.talk.is_acked(4)


def test_the_oldest_make_room_on_disk_and_are_counted_and_reported(tmp_path: Path) -> None:
    process = Process(tmp_path, spool_bytes=20_000)
    for _ in range(300):
        process.add(values=20)
        process.passes(1)
        assert process.disk_bytes() <= 20_000
    held = len(process.talk.pending.held) + process.talk.pending_messages
    assert process.drops(SPOOL) == (300 - held) * 20 > 0
    assert process.drops(MEMORY) == 0
    process.open()
    report = process.one()
    assert report is not None
    assert [(d.reason, d.samples_total) for d in report.self_report.drops] == [(SPOOL, process.drops(SPOOL))]
    assert report.self_report.spool_bytes == process.disk_bytes() > 10_000
    said = process.says()
    assert sorted(said) == list(range(301 - held, 301))  # the newest survive


def test_a_message_larger_than_the_spool_is_dropped_and_counted_and_the_next_ones_are_kept(tmp_path: Path) -> None:
    process = Process(tmp_path, spool_bytes=4000)
    process.add(values=1000)
    process.add(3)
    process.passes(30)
    assert process.drops(SPOOL) == 1000
    assert process.talk.pending.held.ranges(0, 9) == [(2, 4)]


def test_a_spool_of_nothing_is_no_spool(tmp_path: Path) -> None:
    for given_settings in ({"spool_bytes": 0}, {"disabled": True}):
        process = Process(tmp_path, limit_bytes=2000, **given_settings)
        process.add(100)
        process.passes(10)
        assert process.drops(MEMORY) == 100 - process.talk.pending_messages > 0
    assert list(tmp_path.iterdir()) == []


FULL = [("create", errno.ENOSPC), ("write", errno.ENOSPC), ("write", errno.EIO), ("create", errno.EROFS)]


@pytest.mark.parametrize(("method", "number"), FULL)
def test_a_disk_that_fails_leaves_memory_at_work_is_said_once_and_tried_again(
    tmp_path: Path, method: str, number: int
) -> None:
    process = Process(tmp_path, limit_bytes=5000)
    process.disk.fail = {method: number}
    for _ in range(40):
        process.add(values=5)
        process.passes(1)
    kept = process.talk.pending_messages
    assert process.drops(MEMORY) == (40 - kept) * 5 > 0
    assert len(process.problems.texts) == 1
    assert os.strerror(number) in process.problems.texts[0]
    process.disk.fail = {}
    process.passes(15)
    assert process.talk.pending_messages == 0
    process.open()
    assert process.says() == list(range(41 - kept, 41))


def test_what_cannot_be_read_back_is_counted(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.add(5)
    process.passes(4)
    process.disk.fail = {"read": errno.EIO}
    process.add()
    process.open()
    assert process.says() == [6]
    assert process.drops(SPOOL) == 5
    assert process.talk.is_acked(5)
    assert "set aside" in process.problems.texts[0]


def test_a_bit_that_flips_on_disk_costs_one_message_and_the_file_is_set_aside(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.add(5, values=4)
    process.passes(4)
    (path,) = process.folder.rglob("*.spool")
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    process.open()
    assert process.says() == [1, 2, 3, 4]
    assert process.drops(SPOOL) == 4
    process.ack((1, 4))
    assert process.files() == ["i1-0000000001.damaged"]


def test_a_folder_that_somebody_removed_is_made_again_and_what_was_in_it_counted(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.add(5)
    process.passes(4)
    process.open()
    process.talk.lost()
    shutil.rmtree(process.folder)
    process.add(3)
    process.passes(20)  # the open file takes these, and nobody notices
    process.open()
    assert process.says() == []
    assert process.drops(SPOOL) == 8
    process.talk.lost()
    process.add(2)
    process.passes(20)
    assert process.talk.pending.held.ranges(0, 99) == [(9, 10)]
    process.open()
    assert process.says() == [9, 10]


# -- every message to disk first --------------------------------------------------------------------------------------


def test_with_always_nothing_is_said_before_it_is_on_disk_and_then_it_comes_from_memory(tmp_path: Path) -> None:
    process = Process(tmp_path, spool_always=True)
    process.open()
    while process.one() is not None:
        pass
    process.add(3)
    assert process.one() is None
    process.work()
    process.disk.fail = {"read": errno.EIO}
    assert process.says() == [1, 2, 3]
    process.ack((1, 3))
    assert process.talk.totals.acked == 3
    assert (process.talk.pending_messages, len(process.talk.pending.held)) == (0, 0)
    assert process.talk.totals.drops == {}


def test_with_always_an_acknowledged_file_is_kept_open_and_its_bookmark_holds(tmp_path: Path) -> None:
    process = Process(tmp_path, spool_always=True)
    process.open()
    for number in range(1, 20):
        process.add()
        process.says()
        process.ack((1, number - 1))
        process.passes(1)
    process.passes(3)
    assert process.files() == ["i1/0000000001.spool"]
    process.die()
    later = Process(tmp_path, "i2")
    assert later.adopted().pending.held.ranges(0, 99) == [(19, 19)]


def test_with_always_memory_is_shed_to_half_its_bound_and_the_rest_is_read_back(tmp_path: Path) -> None:
    process = Process(tmp_path, spool_always=True, limit_bytes=20_000)
    for _ in range(200):
        process.add(values=10)
        process.work()
        assert process.talk.pending_bytes <= 10_500
    process.open()
    said = process.says()
    assert sorted(said) == list(range(1, 201))
    assert said[0] > 100
    process.ack((1, 200))
    assert process.talk.totals.acked == 2000
    assert process.talk.totals.drops == {}


def test_with_always_what_leaves_memory_after_the_disk_was_read_is_read_after_all(tmp_path: Path) -> None:
    process = Process(tmp_path, spool_always=True, limit_bytes=4000)
    process.add(6)
    process.work()
    process.open()
    process.work()  # all that is on disk is in memory too: nothing to read
    for _ in range(20):
        process.add()
        process.work()
    assert sorted(process.says()) == list(range(1, 27))


def test_with_always_a_disk_that_fails_holds_nothing_back(tmp_path: Path) -> None:
    process = Process(tmp_path, spool_always=True)
    process.disk.fail = {"write": errno.ENOSPC}
    process.open()
    process.add(3)
    assert process.says() == [1, 2, 3]
    process.ack((1, 3))
    assert process.talk.totals.acked == 3


def test_with_always_a_goodbye_waits_until_everything_is_on_disk_and_said(tmp_path: Path) -> None:
    process = Process(tmp_path, spool_always=True)
    process.open()
    process.says()
    process.add()
    process.talk.goodbye(pb.GOODBYE_KIND_EXIT, "")
    assert process.one() is None
    process.work()
    first, second = process.one(), process.one()
    assert first is not None
    assert second is not None
    assert (first.sequence, second.WhichOneof("body")) == (1, "goodbye")
