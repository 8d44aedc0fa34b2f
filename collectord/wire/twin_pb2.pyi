from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AgentMessage(_message.Message):
    __slots__ = ("sequence", "batch")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    batch: Batch
    def __init__(self, sequence: _Optional[int] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("time_unix_ms", "layout", "refs", "values", "offsets_ms")
    TIME_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_MS_FIELD_NUMBER: _ClassVar[int]
    time_unix_ms: int
    layout: int
    refs: _containers.RepeatedScalarFieldContainer[bytes]
    values: _containers.RepeatedScalarFieldContainer[bytes]
    offsets_ms: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, time_unix_ms: _Optional[int] = ..., layout: _Optional[int] = ..., refs: _Optional[_Iterable[bytes]] = ..., values: _Optional[_Iterable[bytes]] = ..., offsets_ms: _Optional[_Iterable[bytes]] = ...) -> None: ...
