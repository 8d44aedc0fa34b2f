"""The twin reads the contract's bytes: same field numbers, and bytes where the contract has a packed column."""

import pytest

from agent_stub.wire import stream_pb2 as wire
from collectord.wire import twin_pb2 as twin

PACKED = {"refs": "fixed32", "values": "double", "offsets_ms": "sfixed32"}


@pytest.mark.parametrize("message", ["AgentMessage", "Batch"])
def test_the_twin_has_the_contracts_numbers(message: str) -> None:
    honest = wire.DESCRIPTOR.message_types_by_name[message].fields_by_name
    for name, field in twin.DESCRIPTOR.message_types_by_name[message].fields_by_name.items():
        assert field.number == honest[name].number
        if name in PACKED:
            assert field.type == field.TYPE_BYTES
            assert field.is_repeated
            assert honest[name].is_packed
            assert honest[name].type == getattr(field, f"TYPE_{PACKED[name].upper()}")
        elif field.message_type is None:
            assert field.type == honest[name].type


def test_the_twin_of_a_batch_has_all_its_fields() -> None:
    assert set(twin.Batch.DESCRIPTOR.fields_by_name) == set(wire.Batch.DESCRIPTOR.fields_by_name)


def test_columns_come_out_of_the_twin_as_they_went_in() -> None:
    said = wire.AgentMessage(
        sequence=7, batch=wire.Batch(time_unix_ms=5, refs=[1, 2], values=[0.5, -1.0], offsets_ms=[0, -3])
    )
    heard = twin.AgentMessage.FromString(said.SerializeToString())
    assert heard.sequence == 7
    assert heard.batch.time_unix_ms == 5
    assert [len(heard.batch.refs[0]), len(heard.batch.values[0]), len(heard.batch.offsets_ms[0])] == [8, 16, 8]
