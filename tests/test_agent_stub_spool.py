"""The spool's bytes and folders: whatever happens to a file, what is whole in it comes back, and what is not is counted."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_stub.disk import Disk
from agent_stub.durable import Counts, Durable, Held, counts_of
from agent_stub.spool import Catalogue, Spool, SpoolFullError, folder_name
from agent_stub.spool_format import (
    FILE_MAGIC,
    FRAME_MAGIC,
    HEADER,
    NOTHING,
    bookmark,
    frame,
    plus,
    read_bookmark,
    read_file,
)
from agent_stub.wire import stream_pb2 as pb

HELLO = pb.Hello(agent="a", instance="i1", start_time_unix_ms=5, version="2")
FILE_BYTES = 1 << 20


def batch(sequence: int, values: Iterable[float] = (1.5,), refs: Iterable[int] = (), layout: int = 0) -> Durable:
    values = list(values)
    named = list(refs) or ([] if layout else list(range(1, len(values) + 1)))
    body = pb.Batch(time_unix_ms=1000 * sequence, refs=named, layout=layout, values=values)
    message = pb.AgentMessage(sequence=sequence, batch=body)
    layout_refs = tuple(range(1, len(values) + 1)) if layout else ()
    return Durable(sequence, message.SerializeToString(), counts_of(message), layout, layout_refs)


def event(sequence: int, text: str = "") -> Durable:
    message = pb.AgentMessage(sequence=sequence, events=pb.Events(events=[pb.Event(kind="e" + text)]))
    return Durable(sequence, message.SerializeToString(), counts_of(message))


def gauges(count: int) -> list[pb.Series]:
    return [pb.Series(ref=ref, name=f"g{ref}", kind=pb.METRIC_KIND_GAUGE) for ref in range(1, count + 1)]


def file_of(messages: Iterable[Durable]) -> bytes:
    """A file as the writer makes it, with a declaration before everything."""
    parts = [FILE_MAGIC, frame(pb.AgentMessage(hello=HELLO).SerializeToString(), NOTHING)]
    parts.append(frame(pb.AgentMessage(declare=pb.Declare(series=gauges(3))).SerializeToString(), NOTHING))
    sums = NOTHING
    for message in messages:
        sums = plus(sums, message.counts)
        parts.append(frame(message.data, sums))
    return b"".join(parts)


THREE = [batch(1, [1.0, 2.0]), event(2, "FRAM"), batch(3, [3.0, 4.0, 5.0])]


def total(counts: Iterable[Counts]) -> Counts:
    added = Counts()
    for one in counts:
        added.add(one)
    return added


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_the_documented_example_is_read_and_written_byte_for_byte() -> None:
    readme = (Path(__file__).parent.parent / "agent_stub/README.md").read_text()
    block = readme.split("```hex\n")[1].split("```")[0]
    data = bytes.fromhex("".join(line.split("  ")[0] for line in block.splitlines()))
    hello = pb.AgentMessage(hello=pb.Hello(agent="a", instance="i")).SerializeToString()
    message = pb.AgentMessage(sequence=7, batch=pb.Batch(time_unix_ms=1000, refs=[1], values=[0.5]))
    assert data == FILE_MAGIC + frame(hello, NOTHING) + frame(message.SerializeToString(), (1, 0, 0))
    contents = read_file(data)
    assert (contents.hello.agent, [m.sequence for m in contents.messages], contents.damage) == ("a", [7], "")


def test_a_whole_file_comes_back_whole() -> None:
    contents = read_file(file_of(THREE))
    assert contents.messages == THREE
    assert (contents.hello, len(contents.series), contents.damage, contents.gaps) == (HELLO, 3, "", [])
    assert (contents.begin, contents.end) == (NOTHING, (5, 1, 0))


def test_a_file_cut_anywhere_ends_there_without_complaint() -> None:
    data = file_of(THREE)
    ends = [data.index(m.data) + len(m.data) for m in THREE]
    for length in range(len(data)):
        contents = read_file(data[:length])
        assert contents.messages == THREE[: sum(end <= length for end in ends)], length
        assert (contents.damage, contents.gaps, contents.tail) == ("", [], Counts()), length


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 100, FRAME_MAGIC, FRAME_MAGIC + b"\xff\xff\0\0" + b"x" * 40])
def test_what_a_power_cut_leaves_behind_the_last_frame_is_no_damage(tail: bytes) -> None:
    contents = read_file(file_of(THREE) + tail)
    assert (contents.messages, contents.damage) == (THREE, "")


@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_anywhere_loses_one_message_at_most_and_that_one_is_counted(bit: int) -> None:
    data = file_of(THREE)
    last_frame = data.rindex(FRAME_MAGIC)
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 1 << bit
        contents = read_file(bytes(bad))
        missing = [m for m in THREE if m not in contents.messages]
        assert len(missing) <= 1, at
        assert all(m in THREE for m in contents.messages), at
        in_last_length = last_frame + 4 <= at < last_frame + 8
        assert contents.damage or in_last_length, at  # a last frame that is longer than the file is a torn tail
        if missing and not in_last_length:
            counted = total([*(gap.counts for gap in contents.gaps), contents.tail])
            assert (counted.samples + counted.events) >= 1, at
            if missing[0] is not THREE[-1]:
                assert counted == missing[0].counts, at


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_anywhere_are_survived(noise: bytes, at: int) -> None:
    data = file_of(THREE)
    for bad in (noise, data[:at] + noise, data[:at] + noise + data[at:], noise + data):
        contents = read_file(bad)
        assert all(m in THREE for m in contents.messages)


def test_a_file_made_to_be_searched_for_ever_is_given_up_soon() -> None:
    trap = (FRAME_MAGIC + (1 << 20).to_bytes(4, "little")) * (1 << 18)
    began = time.monotonic()
    assert read_file(b"x" + trap).messages == []
    assert time.monotonic() - began < 2


def test_a_batch_whose_layout_was_damaged_is_counted_as_lost() -> None:
    layout = pb.AgentMessage(declare=pb.Declare(layouts=[pb.Layout(layout=1, refs=[1, 2])])).SerializeToString()
    laid_out, plain = batch(1, [1.0, 2.0], layout=1), batch(2, [3.0])
    frames = [frame(layout, NOTHING), frame(laid_out.data, (2, 0, 0)), frame(plain.data, (3, 0, 0))]
    hello = frame(pb.AgentMessage(hello=HELLO).SerializeToString(), NOTHING)
    whole = read_file(FILE_MAGIC + hello + b"".join(frames))
    assert [m.refs for m in whole.messages] == [(1, 2), ()]
    without = read_file(FILE_MAGIC + hello + frames[0][:-1] + b"!" + b"".join(frames[1:]))
    assert [m.sequence for m in without.messages] == [2]
    assert [gap.counts.samples for gap in without.gaps] == [2]


RANGES = [[], [(1, 1)], [(1, 5), (9, 1 << 60)]]


@pytest.mark.parametrize("ranges", RANGES)
def test_a_bookmark_comes_back_and_a_damaged_one_is_none(ranges: list[tuple[int, int]]) -> None:
    data = bookmark(ranges)
    assert read_bookmark(data) == ranges
    for at in range(len(data)):
        bad = bytearray(data)
        bad[at] ^= 1
        assert read_bookmark(bytes(bad)) is None
        assert read_bookmark(data[:at]) is None


@given(
    st.lists(st.integers(1, 60), unique=True),
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70)), max_size=8),
)
def test_held_is_a_dictionary_of_counts(sequences: list[int], removals: list[tuple[int, int]]) -> None:
    held, model = Held(), {s: Counts(samples=s) if s % 3 else Counts(events=s) for s in sorted(sequences)}
    for sequence, counts in model.items():
        held.add(sequence, counts)
    for first, last in removals:
        gone = [model.pop(s) for s in list(model) if first <= s <= last]
        assert held.remove(first, last) == total(gone)
        assert held.sequences(0, 100) == sorted(model)
        assert (len(held), held.first, held.last) == (len(model), min(model, default=0), max(model, default=0))
        assert held.any(first, last) is False
        assert all((s in held) == (s in model) for s in range(70))


# -- folders ----------------------------------------------------------------------------------------------------------


class FailingDisk(Disk):
    """A disk that fails on request: `fail[method]` is an errno; `room_bytes` what may be written until it is full."""

    def __init__(self) -> None:
        self.fail: dict[str, int] = {}
        self.room_bytes = 1 << 40

    def _check(self, method: str) -> None:
        if method in self.fail:
            raise OSError(self.fail[method], os.strerror(self.fail[method]))

    def write(self, file: int, data: bytes) -> None:
        self._check("write")
        if len(data) > self.room_bytes:
            super().write(file, data[: self.room_bytes])
            raise OSError(errno.ENOSPC, "no space left")
        self.room_bytes -= len(data)
        super().write(file, data)

    def read(self, path: str) -> bytes:
        self._check("read")
        return super().read(path)

    def sync(self, file: int) -> None:
        self._check("sync")
        super().sync(file)

    def rename(self, path: str, to: str) -> None:
        self._check("rename")
        super().rename(path, to)


def new_spool(tmp_path: Path, disk: Disk | None = None, file_bytes: int = FILE_BYTES, name: str = "i1") -> Spool:
    return Spool.create(str(tmp_path / "a"), name, disk or Disk(), file_bytes)


def write(spool: Spool, messages: list[Durable], series: list[pb.Series] | None = None) -> None:
    catalogue = Catalogue(gauges(50) if series is None else series)
    while messages:
        count = spool.append(messages, catalogue, HELLO, [], lambda size_bytes: True)
        messages = messages[count:]


def adopt(tmp_path: Path, name: str = "i1", disk: Disk | None = None) -> Spool:
    spool = Spool.adopt(str(tmp_path / "a" / name), disk or Disk(), FILE_BYTES)
    assert spool is not None
    return spool


def names(tmp_path: Path, name: str = "i1") -> list[str]:
    return sorted(os.listdir(tmp_path / "a" / name))


def test_what_a_dead_instance_wrote_is_found_with_all_that_it_needs(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    write(spool, [batch(1, [1.0, 2.0], layout=1), event(2), batch(5, [9.0], refs=[7]), batch(6, [3.0, 4.0], layout=1)])
    spool.close()
    found, held = adopt(tmp_path), Held()
    scan, damaged = found.scan(held)
    assert (scan.hello, scan.lost, damaged) == (HELLO, Counts(), [])
    assert held.ranges(0, 100) == [(1, 2), (5, 6)]
    contents = found.load(found.files[0])
    assert sorted(s.ref for s in contents.series) == [1, 2, 7]  # what is needed, each once
    assert [m.refs for m in contents.messages] == [(1, 2), (), (), (1, 2)]


def test_every_file_stands_for_itself(tmp_path: Path) -> None:
    spool = new_spool(tmp_path, file_bytes=200)
    write(spool, [batch(n, [float(n), 2.0], layout=1) for n in range(1, 13)])
    spool.roll()
    assert len(spool.files) >= 3
    for file in spool.files:
        contents = spool.load(file)
        assert (contents.hello, [s.ref for s in contents.series]) == (HELLO, [1, 2])
        assert {m.refs for m in contents.messages} == {(1, 2)}
        assert (contents.messages[0].sequence, contents.messages[-1].sequence) == (file.first, file.last)
    assert [m.sequence for f in spool.files for m in spool.load(f).messages] == list(range(1, 13))


def test_a_histogram_is_declared_once_for_all_of_its_refs(tmp_path: Path) -> None:
    histogram = pb.Series(ref=3, name="h", kind=pb.METRIC_KIND_HISTOGRAM, bucket_bounds=[1, 2])
    spool = new_spool(tmp_path)
    write(
        spool,
        [batch(1, [0.0] * 5, refs=[3, 4, 5, 6, 7]), batch(2, [0.0] * 2, refs=[7, 8])],
        [*gauges(2), histogram, pb.Series(ref=8, name="x")],
    )
    spool.roll()
    assert [s.ref for s in spool.load(spool.files[0]).series] == [3, 8]


def test_a_living_instances_folder_is_not_taken_and_a_dead_ones_only_once(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    path = str(tmp_path / "a" / "i1")
    assert Spool.adopt(path, Disk(), FILE_BYTES) is None
    spool.close()
    first = adopt(tmp_path)
    assert Spool.adopt(path, Disk(), FILE_BYTES) is None
    first.delete()
    assert Spool.adopt(path, Disk(), FILE_BYTES) is None
    assert os.listdir(tmp_path / "a") == []


def test_a_folder_whose_owner_removed_it_while_its_lock_was_waited_for_is_not_taken(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)

    class Late(Disk):
        def lock(self, path: str) -> int | None:
            spool.delete()
            os.makedirs(os.path.dirname(path))
            old = super().lock(path)
            os.rename(path, path + ".old")
            return old

    assert Spool.adopt(spool.folder, Late(), FILE_BYTES) is None


def damage(path: str, at: int = -3) -> None:
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 0xFF
    Path(path).write_bytes(data)


def test_a_damaged_file_is_set_aside_loses_only_what_is_damaged_and_is_counted_once(tmp_path: Path) -> None:
    spool = new_spool(tmp_path, file_bytes=120)
    write(spool, [batch(n, [1.0] * n) for n in range(1, 9)])
    spool.close()
    victim = spool.files[1]
    damage(victim.path)
    missing = {victim.last}
    first, held = adopt(tmp_path), Held()
    scan, damaged = first.scan(held)
    assert set(range(1, 9)) - set(held.sequences(0, 100)) == missing
    assert scan.lost.samples == victim.last  # message n holds n samples
    assert len(damaged) == 1
    assert "bytes at offset" in damaged[0]
    assert victim.path in damaged[0]
    assert [n for n in names(tmp_path) if n.endswith("damaged")] == ["0000000002.damaged"]
    first.mark(first.done(held))
    first.close()
    again = Held()
    scan, damaged = adopt(tmp_path).scan(again)
    assert (scan.lost, damaged) == (Counts(), [])
    assert again.sequences(0, 100) == held.sequences(0, 100)


def test_a_damaged_files_rest_goes_to_the_agents_folder_when_it_is_delivered(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    write(spool, [batch(1), batch(2), batch(3)])
    spool.roll()
    spool.set_aside(spool.files[0])
    spool.remove(spool.files[0])
    spool.delete()
    assert os.listdir(tmp_path / "a") == ["i1-0000000001.damaged"]


def test_a_damaged_last_frame_counts_what_can_still_be_read_of_it(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    write(spool, [batch(1), batch(2, [1.0, 2.0, 3.0])])
    spool.close()
    damage(spool.files[0].path, -1)
    scan, damaged = adopt(tmp_path).scan(Held())
    assert (scan.lost.samples, len(damaged)) == (3, 1)


def test_a_damaged_end_is_counted_though_nothing_of_the_next_file_is_whole(tmp_path: Path) -> None:
    spool = new_spool(tmp_path, file_bytes=1)
    write(spool, [batch(1), batch(2, [1.0] * 7), batch(3)])
    spool.close()
    damage(spool.files[1].path, -1)
    Path(spool.files[2].path).write_bytes(b"?" * 100)
    scan, damaged = adopt(tmp_path).scan(Held())
    assert (scan.lost.samples, len(damaged)) == (7 + 1, 2)


def test_a_missing_file_is_counted_by_the_one_after_it_unless_all_in_it_was_acknowledged(tmp_path: Path) -> None:
    spool = new_spool(tmp_path, file_bytes=1)
    write(spool, [batch(n, [1.0] * n) for n in range(1, 6)])
    spool.close()
    assert len(spool.files) == 5
    os.unlink(spool.files[2].path)
    first, held = adopt(tmp_path), Held()
    scan, _ = first.scan(held)
    assert (scan.lost.samples, held.sequences(0, 9)) == (3, [1, 2, 4, 5])
    first.close()
    Path(first.folder, "BOOKMARK").write_bytes(bookmark([(3, 3)]))
    scan, _ = adopt(tmp_path).scan(Held())
    assert scan.lost == Counts()


def test_what_the_bookmark_names_is_not_delivered_again(tmp_path: Path) -> None:
    spool, held = new_spool(tmp_path), Held()
    messages = [batch(n) for n in range(1, 10)]
    write(spool, messages)
    for message in messages:
        held.add(message.sequence, message.counts)
    held.remove(2, 4)
    held.remove(9, 9)
    spool.mark(spool.done(held))
    spool.close()
    again = Held()
    adopt(tmp_path).scan(again)
    assert again.ranges(0, 100) == [(1, 1), (5, 8)]


@pytest.mark.parametrize("method", ["write", "sync", "rename"])
def test_a_bookmark_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, method: str) -> None:
    disk = FailingDisk()
    spool = new_spool(tmp_path, disk)
    write(spool, [batch(n) for n in range(1, 10)])
    spool.mark([(1, 3)])
    disk.fail = {method: errno.EIO}
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        spool.mark([(1, 4)])
    assert read_bookmark(Path(spool.folder, "BOOKMARK").read_bytes()) == [(1, 3)]
    disk.fail = {}
    spool.mark([(1, 4)])
    assert read_bookmark(Path(spool.folder, "BOOKMARK").read_bytes()) == [(1, 4)]


@pytest.mark.parametrize("room_bytes", [0, 5, 100, 200])
def test_a_write_that_fails_half_way_loses_nothing_that_was_written_before(tmp_path: Path, room_bytes: int) -> None:
    disk = FailingDisk()
    spool = new_spool(tmp_path, disk)
    write(spool, [batch(1), batch(2)])
    disk.room_bytes = room_bytes
    with pytest.raises(OSError, match="no space"):
        write(spool, [batch(n, range(20)) for n in range(3, 9)])
    disk.room_bytes = 1 << 40
    write(spool, [batch(n, range(20)) for n in range(3, 9)])
    spool.close()
    held = Held()
    scan, damaged = adopt(tmp_path).scan(held)
    assert (held.sequences(0, 100), scan.lost, damaged) == (list(range(1, 9)), Counts(), [])


def test_a_file_that_cannot_be_begun_leaves_nothing_behind(tmp_path: Path) -> None:
    disk = FailingDisk()
    spool = new_spool(tmp_path, disk)
    disk.room_bytes = 10
    with pytest.raises(OSError, match="no space"):
        write(spool, [batch(1)])
    assert (names(tmp_path), spool.files) == (["LOCK"], [])


def test_without_room_the_open_file_is_ended_so_that_it_may_go_and_then_it_is_full(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    write(spool, [batch(1)])
    asked: list[bool] = []

    def make_room(size_bytes: int) -> bool:
        asked.append(spool.open_file is None)
        return False

    with pytest.raises(SpoolFullError, match="bytes to write, and no room"):
        spool.append([batch(2)], Catalogue(gauges(3)), HELLO, [], make_room)
    assert asked == [False, True]


def test_drops_are_written_beside_the_messages_when_they_have_changed(tmp_path: Path) -> None:
    spool, catalogue = new_spool(tmp_path), Catalogue(gauges(3))
    for sequence, dropped in ((1, 5), (2, 5), (3, 9)):
        drops = [pb.Drop(reason=pb.DROP_REASON_MEMORY, samples_total=dropped)]
        spool.append([batch(sequence)], catalogue, HELLO, drops, lambda size_bytes: True)
    spool.close()
    data = Path(spool.files[0].path).read_bytes()
    assert data.count(FRAME_MAGIC) == 1 + 1 + 2 + 3  # hello, series, two reports, three batches
    scan, _ = adopt(tmp_path).scan(Held())
    assert [d.samples_total for d in scan.report.drops] == [9]


def test_an_unreadable_file_is_set_aside_and_counted(tmp_path: Path) -> None:
    spool = new_spool(tmp_path)
    write(spool, [batch(1)])
    spool.close()
    disk = FailingDisk()
    disk.fail = {"read": errno.EIO}
    scan, damaged = adopt(tmp_path, disk=disk).scan(Held())
    assert scan.lost.samples >= 1
    assert "cannot be read" in damaged[0]


def test_files_are_readable_by_their_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        spool = new_spool(tmp_path)
        write(spool, [batch(1)])
    finally:
        os.umask(before)
    assert os.stat(spool.folder).st_mode & 0o777 == 0o700
    assert os.stat(spool.files[0].path).st_mode & 0o777 == 0o600


AGENTS = ["a", "a/b", "..", ".", ".hidden", "ä b", "x" * 256, "x" * 255 + "y", "%2E", "\ud800", "*?:"]


def test_every_agents_name_is_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = [folder_name(agent) for agent in AGENTS]
    assert len(set(folders)) == len(AGENTS)
    for name in folders:
        (tmp_path / name).mkdir()
        assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert folder_name("researcher") == "researcher"


def test_the_header_takes_24_bytes() -> None:
    assert HEADER.size == 24
