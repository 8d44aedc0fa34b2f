from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Capability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAPABILITY_UNSPECIFIED: _ClassVar[Capability]
    CAPABILITY_POLL: _ClassVar[Capability]
    CAPABILITY_CONFIG: _ClassVar[Capability]
    CAPABILITY_COMMANDS: _ClassVar[Capability]
    CAPABILITY_LOGS: _ClassVar[Capability]
    CAPABILITY_EVENTS: _ClassVar[Capability]
    CAPABILITY_STACKS: _ClassVar[Capability]

class MetricKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METRIC_KIND_UNSPECIFIED: _ClassVar[MetricKind]
    METRIC_KIND_COUNTER: _ClassVar[MetricKind]
    METRIC_KIND_UP_DOWN_COUNTER: _ClassVar[MetricKind]
    METRIC_KIND_GAUGE: _ClassVar[MetricKind]
    METRIC_KIND_HISTOGRAM: _ClassVar[MetricKind]

class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEVERITY_UNSPECIFIED: _ClassVar[Severity]
    SEVERITY_TRACE: _ClassVar[Severity]
    SEVERITY_DEBUG: _ClassVar[Severity]
    SEVERITY_INFO: _ClassVar[Severity]
    SEVERITY_WARN: _ClassVar[Severity]
    SEVERITY_ERROR: _ClassVar[Severity]
    SEVERITY_FATAL: _ClassVar[Severity]

class DropReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DROP_REASON_UNSPECIFIED: _ClassVar[DropReason]
    DROP_REASON_MEMORY: _ClassVar[DropReason]
    DROP_REASON_SPOOL: _ClassVar[DropReason]
    DROP_REASON_SERIES_LIMIT: _ClassVar[DropReason]
    DROP_REASON_INVALID: _ClassVar[DropReason]
    DROP_REASON_FORK: _ClassVar[DropReason]
    DROP_REASON_CLOSED: _ClassVar[DropReason]

class GoodbyeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GOODBYE_KIND_UNSPECIFIED: _ClassVar[GoodbyeKind]
    GOODBYE_KIND_EXIT: _ClassVar[GoodbyeKind]
    GOODBYE_KIND_SIGNAL: _ClassVar[GoodbyeKind]
    GOODBYE_KIND_RECONNECT: _ClassVar[GoodbyeKind]
    GOODBYE_KIND_FORCED: _ClassVar[GoodbyeKind]

class ConfigState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONFIG_STATE_UNSPECIFIED: _ClassVar[ConfigState]
    CONFIG_STATE_APPLYING: _ClassVar[ConfigState]
    CONFIG_STATE_APPLIED: _ClassVar[ConfigState]
    CONFIG_STATE_FAILED: _ClassVar[ConfigState]

class RefusalReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_REASON_UNSPECIFIED: _ClassVar[RefusalReason]
    REFUSAL_REASON_VERSION: _ClassVar[RefusalReason]
    REFUSAL_REASON_UNAUTHENTICATED: _ClassVar[RefusalReason]
    REFUSAL_REASON_DUPLICATE_INSTANCE: _ClassVar[RefusalReason]
    REFUSAL_REASON_OVERLOADED: _ClassVar[RefusalReason]
    REFUSAL_REASON_RATE_LIMITED: _ClassVar[RefusalReason]
    REFUSAL_REASON_MALFORMED: _ClassVar[RefusalReason]
    REFUSAL_REASON_SHUTTING_DOWN: _ClassVar[RefusalReason]
    REFUSAL_REASON_HANDSHAKE_TIMEOUT: _ClassVar[RefusalReason]
    REFUSAL_REASON_REPLACED: _ClassVar[RefusalReason]
    REFUSAL_REASON_SLOW_READER: _ClassVar[RefusalReason]

class ViolationKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VIOLATION_KIND_UNSPECIFIED: _ClassVar[ViolationKind]
    VIOLATION_KIND_GARBAGE: _ClassVar[ViolationKind]
    VIOLATION_KIND_UNKNOWN_REF: _ClassVar[ViolationKind]
    VIOLATION_KIND_REF_CONFLICT: _ClassVar[ViolationKind]
    VIOLATION_KIND_COLUMNS: _ClassVar[ViolationKind]
    VIOLATION_KIND_TIME: _ClassVar[ViolationKind]
    VIOLATION_KIND_NAME: _ClassVar[ViolationKind]
    VIOLATION_KIND_TOO_LARGE: _ClassVar[ViolationKind]
    VIOLATION_KIND_SEQUENCE: _ClassVar[ViolationKind]
    VIOLATION_KIND_ORDER: _ClassVar[ViolationKind]

class CommandKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COMMAND_KIND_UNSPECIFIED: _ClassVar[CommandKind]
    COMMAND_KIND_PAUSE: _ClassVar[CommandKind]
    COMMAND_KIND_RESUME: _ClassVar[CommandKind]
    COMMAND_KIND_FLUSH: _ClassVar[CommandKind]
    COMMAND_KIND_SET_INTERVAL: _ClassVar[CommandKind]
    COMMAND_KIND_DUMP_STACKS: _ClassVar[CommandKind]
    COMMAND_KIND_CUSTOM: _ClassVar[CommandKind]
CAPABILITY_UNSPECIFIED: Capability
CAPABILITY_POLL: Capability
CAPABILITY_CONFIG: Capability
CAPABILITY_COMMANDS: Capability
CAPABILITY_LOGS: Capability
CAPABILITY_EVENTS: Capability
CAPABILITY_STACKS: Capability
METRIC_KIND_UNSPECIFIED: MetricKind
METRIC_KIND_COUNTER: MetricKind
METRIC_KIND_UP_DOWN_COUNTER: MetricKind
METRIC_KIND_GAUGE: MetricKind
METRIC_KIND_HISTOGRAM: MetricKind
SEVERITY_UNSPECIFIED: Severity
SEVERITY_TRACE: Severity
SEVERITY_DEBUG: Severity
SEVERITY_INFO: Severity
SEVERITY_WARN: Severity
SEVERITY_ERROR: Severity
SEVERITY_FATAL: Severity
DROP_REASON_UNSPECIFIED: DropReason
DROP_REASON_MEMORY: DropReason
DROP_REASON_SPOOL: DropReason
DROP_REASON_SERIES_LIMIT: DropReason
DROP_REASON_INVALID: DropReason
DROP_REASON_FORK: DropReason
DROP_REASON_CLOSED: DropReason
GOODBYE_KIND_UNSPECIFIED: GoodbyeKind
GOODBYE_KIND_EXIT: GoodbyeKind
GOODBYE_KIND_SIGNAL: GoodbyeKind
GOODBYE_KIND_RECONNECT: GoodbyeKind
GOODBYE_KIND_FORCED: GoodbyeKind
CONFIG_STATE_UNSPECIFIED: ConfigState
CONFIG_STATE_APPLYING: ConfigState
CONFIG_STATE_APPLIED: ConfigState
CONFIG_STATE_FAILED: ConfigState
REFUSAL_REASON_UNSPECIFIED: RefusalReason
REFUSAL_REASON_VERSION: RefusalReason
REFUSAL_REASON_UNAUTHENTICATED: RefusalReason
REFUSAL_REASON_DUPLICATE_INSTANCE: RefusalReason
REFUSAL_REASON_OVERLOADED: RefusalReason
REFUSAL_REASON_RATE_LIMITED: RefusalReason
REFUSAL_REASON_MALFORMED: RefusalReason
REFUSAL_REASON_SHUTTING_DOWN: RefusalReason
REFUSAL_REASON_HANDSHAKE_TIMEOUT: RefusalReason
REFUSAL_REASON_REPLACED: RefusalReason
REFUSAL_REASON_SLOW_READER: RefusalReason
VIOLATION_KIND_UNSPECIFIED: ViolationKind
VIOLATION_KIND_GARBAGE: ViolationKind
VIOLATION_KIND_UNKNOWN_REF: ViolationKind
VIOLATION_KIND_REF_CONFLICT: ViolationKind
VIOLATION_KIND_COLUMNS: ViolationKind
VIOLATION_KIND_TIME: ViolationKind
VIOLATION_KIND_NAME: ViolationKind
VIOLATION_KIND_TOO_LARGE: ViolationKind
VIOLATION_KIND_SEQUENCE: ViolationKind
VIOLATION_KIND_ORDER: ViolationKind
COMMAND_KIND_UNSPECIFIED: CommandKind
COMMAND_KIND_PAUSE: CommandKind
COMMAND_KIND_RESUME: CommandKind
COMMAND_KIND_FLUSH: CommandKind
COMMAND_KIND_SET_INTERVAL: CommandKind
COMMAND_KIND_DUMP_STACKS: CommandKind
COMMAND_KIND_CUSTOM: CommandKind

class AgentMessage(_message.Message):
    __slots__ = ("sequence", "hello", "declare", "batch", "events", "logs", "pong", "config_status", "command_result", "self_report", "goodbye")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    DECLARE_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    LOGS_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    CONFIG_STATUS_FIELD_NUMBER: _ClassVar[int]
    COMMAND_RESULT_FIELD_NUMBER: _ClassVar[int]
    SELF_REPORT_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    hello: Hello
    declare: Declare
    batch: Batch
    events: Events
    logs: Logs
    pong: Pong
    config_status: ConfigStatus
    command_result: CommandResult
    self_report: SelfReport
    goodbye: Goodbye
    def __init__(self, sequence: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., declare: _Optional[_Union[Declare, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., events: _Optional[_Union[Events, _Mapping]] = ..., logs: _Optional[_Union[Logs, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., config_status: _Optional[_Union[ConfigStatus, _Mapping]] = ..., command_result: _Optional[_Union[CommandResult, _Mapping]] = ..., self_report: _Optional[_Union[SelfReport, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "agent", "instance", "version", "attributes", "capabilities", "start_time_unix_ms", "connection", "backlog", "first_held_sequence", "config_hash", "client")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    START_TIME_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    FIRST_HELD_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_HASH_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    agent: str
    instance: str
    version: str
    attributes: _containers.RepeatedCompositeFieldContainer[Attribute]
    capabilities: _containers.RepeatedScalarFieldContainer[Capability]
    start_time_unix_ms: int
    connection: int
    backlog: bool
    first_held_sequence: int
    config_hash: bytes
    client: str
    def __init__(self, protocol_version: _Optional[int] = ..., agent: _Optional[str] = ..., instance: _Optional[str] = ..., version: _Optional[str] = ..., attributes: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., capabilities: _Optional[_Iterable[_Union[Capability, str]]] = ..., start_time_unix_ms: _Optional[int] = ..., connection: _Optional[int] = ..., backlog: bool = ..., first_held_sequence: _Optional[int] = ..., config_hash: _Optional[bytes] = ..., client: _Optional[str] = ...) -> None: ...

class Attribute(_message.Message):
    __slots__ = ("key", "text", "whole", "real", "flag")
    KEY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    key: str
    text: str
    whole: int
    real: float
    flag: bool
    def __init__(self, key: _Optional[str] = ..., text: _Optional[str] = ..., whole: _Optional[int] = ..., real: _Optional[float] = ..., flag: bool = ...) -> None: ...

class Declare(_message.Message):
    __slots__ = ("series", "layouts")
    SERIES_FIELD_NUMBER: _ClassVar[int]
    LAYOUTS_FIELD_NUMBER: _ClassVar[int]
    series: _containers.RepeatedCompositeFieldContainer[Series]
    layouts: _containers.RepeatedCompositeFieldContainer[Layout]
    def __init__(self, series: _Optional[_Iterable[_Union[Series, _Mapping]]] = ..., layouts: _Optional[_Iterable[_Union[Layout, _Mapping]]] = ...) -> None: ...

class Series(_message.Message):
    __slots__ = ("ref", "name", "labels", "kind", "unit", "bucket_bounds", "description")
    REF_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    BUCKET_BOUNDS_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    ref: int
    name: str
    labels: _containers.RepeatedCompositeFieldContainer[Label]
    kind: MetricKind
    unit: str
    bucket_bounds: _containers.RepeatedScalarFieldContainer[float]
    description: str
    def __init__(self, ref: _Optional[int] = ..., name: _Optional[str] = ..., labels: _Optional[_Iterable[_Union[Label, _Mapping]]] = ..., kind: _Optional[_Union[MetricKind, str]] = ..., unit: _Optional[str] = ..., bucket_bounds: _Optional[_Iterable[float]] = ..., description: _Optional[str] = ...) -> None: ...

class Label(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("layout", "refs")
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    layout: int
    refs: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layout: _Optional[int] = ..., refs: _Optional[_Iterable[int]] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("time_unix_ms", "layout", "refs", "values", "offsets_ms")
    TIME_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_MS_FIELD_NUMBER: _ClassVar[int]
    time_unix_ms: int
    layout: int
    refs: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    offsets_ms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, time_unix_ms: _Optional[int] = ..., layout: _Optional[int] = ..., refs: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[float]] = ..., offsets_ms: _Optional[_Iterable[int]] = ...) -> None: ...

class Events(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("time_unix_ms", "kind", "fields", "severity", "trace_id", "span_id")
    TIME_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    time_unix_ms: int
    kind: str
    fields: _containers.RepeatedCompositeFieldContainer[Attribute]
    severity: Severity
    trace_id: bytes
    span_id: bytes
    def __init__(self, time_unix_ms: _Optional[int] = ..., kind: _Optional[str] = ..., fields: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., severity: _Optional[_Union[Severity, str]] = ..., trace_id: _Optional[bytes] = ..., span_id: _Optional[bytes] = ...) -> None: ...

class Logs(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[LogRecord]
    def __init__(self, records: _Optional[_Iterable[_Union[LogRecord, _Mapping]]] = ...) -> None: ...

class LogRecord(_message.Message):
    __slots__ = ("time_unix_ms", "severity", "body", "logger", "attributes", "trace_id", "span_id")
    TIME_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    LOGGER_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    time_unix_ms: int
    severity: Severity
    body: str
    logger: str
    attributes: _containers.RepeatedCompositeFieldContainer[Attribute]
    trace_id: bytes
    span_id: bytes
    def __init__(self, time_unix_ms: _Optional[int] = ..., severity: _Optional[_Union[Severity, str]] = ..., body: _Optional[str] = ..., logger: _Optional[str] = ..., attributes: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., trace_id: _Optional[bytes] = ..., span_id: _Optional[bytes] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("id", "ping_sent_unix_ns", "received_unix_ns", "sent_unix_ns", "loop_lag_s", "open_tasks", "progress_age_s", "busy_until_unix_ms", "activity")
    ID_FIELD_NUMBER: _ClassVar[int]
    PING_SENT_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    SENT_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    LOOP_LAG_S_FIELD_NUMBER: _ClassVar[int]
    OPEN_TASKS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_AGE_S_FIELD_NUMBER: _ClassVar[int]
    BUSY_UNTIL_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    id: int
    ping_sent_unix_ns: int
    received_unix_ns: int
    sent_unix_ns: int
    loop_lag_s: float
    open_tasks: int
    progress_age_s: float
    busy_until_unix_ms: int
    activity: str
    def __init__(self, id: _Optional[int] = ..., ping_sent_unix_ns: _Optional[int] = ..., received_unix_ns: _Optional[int] = ..., sent_unix_ns: _Optional[int] = ..., loop_lag_s: _Optional[float] = ..., open_tasks: _Optional[int] = ..., progress_age_s: _Optional[float] = ..., busy_until_unix_ms: _Optional[int] = ..., activity: _Optional[str] = ...) -> None: ...

class SelfReport(_message.Message):
    __slots__ = ("recorded_total", "sent_total", "acked_total", "drops", "pending_messages", "pending_bytes", "spool_bytes", "flush_seconds")
    RECORDED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SENT_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ACKED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    DROPS_FIELD_NUMBER: _ClassVar[int]
    PENDING_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    PENDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    SPOOL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FLUSH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    recorded_total: int
    sent_total: int
    acked_total: int
    drops: _containers.RepeatedCompositeFieldContainer[Drop]
    pending_messages: int
    pending_bytes: int
    spool_bytes: int
    flush_seconds: float
    def __init__(self, recorded_total: _Optional[int] = ..., sent_total: _Optional[int] = ..., acked_total: _Optional[int] = ..., drops: _Optional[_Iterable[_Union[Drop, _Mapping]]] = ..., pending_messages: _Optional[int] = ..., pending_bytes: _Optional[int] = ..., spool_bytes: _Optional[int] = ..., flush_seconds: _Optional[float] = ...) -> None: ...

class Drop(_message.Message):
    __slots__ = ("reason", "samples_total", "events_total", "logs_total")
    REASON_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    EVENTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    LOGS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    reason: DropReason
    samples_total: int
    events_total: int
    logs_total: int
    def __init__(self, reason: _Optional[_Union[DropReason, str]] = ..., samples_total: _Optional[int] = ..., events_total: _Optional[int] = ..., logs_total: _Optional[int] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ("kind", "reason", "expected_return_unix_ms", "last_sequence")
    KIND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_RETURN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    kind: GoodbyeKind
    reason: str
    expected_return_unix_ms: int
    last_sequence: int
    def __init__(self, kind: _Optional[_Union[GoodbyeKind, str]] = ..., reason: _Optional[str] = ..., expected_return_unix_ms: _Optional[int] = ..., last_sequence: _Optional[int] = ...) -> None: ...

class ConfigStatus(_message.Message):
    __slots__ = ("hash", "state", "error", "effective", "content_type")
    HASH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    hash: bytes
    state: ConfigState
    error: str
    effective: bytes
    content_type: str
    def __init__(self, hash: _Optional[bytes] = ..., state: _Optional[_Union[ConfigState, str]] = ..., error: _Optional[str] = ..., effective: _Optional[bytes] = ..., content_type: _Optional[str] = ...) -> None: ...

class CommandResult(_message.Message):
    __slots__ = ("id", "ok", "text")
    ID_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    id: int
    ok: bool
    text: str
    def __init__(self, id: _Optional[int] = ..., ok: bool = ..., text: _Optional[str] = ...) -> None: ...

class CollectorMessage(_message.Message):
    __slots__ = ("welcome", "refusal", "ack", "ping", "poll", "throttle", "limit_notice", "violations", "config_push", "command", "drain")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    POLL_FIELD_NUMBER: _ClassVar[int]
    THROTTLE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_NOTICE_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    CONFIG_PUSH_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    refusal: Refusal
    ack: Ack
    ping: Ping
    poll: Poll
    throttle: Throttle
    limit_notice: LimitNotice
    violations: _containers.RepeatedCompositeFieldContainer[Violation]
    config_push: ConfigPush
    command: Command
    drain: Drain
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., poll: _Optional[_Union[Poll, _Mapping]] = ..., throttle: _Optional[_Union[Throttle, _Mapping]] = ..., limit_notice: _Optional[_Union[LimitNotice, _Mapping]] = ..., violations: _Optional[_Iterable[_Union[Violation, _Mapping]]] = ..., config_push: _Optional[_Union[ConfigPush, _Mapping]] = ..., command: _Optional[_Union[Command, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol_version", "collector", "received", "flush_interval_ms", "full_interval_ms", "ping_interval_ms", "limits", "want_full_state")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    COLLECTOR_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    FLUSH_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    FULL_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    PING_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    WANT_FULL_STATE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    collector: str
    received: _containers.RepeatedCompositeFieldContainer[SequenceRange]
    flush_interval_ms: int
    full_interval_ms: int
    ping_interval_ms: int
    limits: Limits
    want_full_state: bool
    def __init__(self, protocol_version: _Optional[int] = ..., collector: _Optional[str] = ..., received: _Optional[_Iterable[_Union[SequenceRange, _Mapping]]] = ..., flush_interval_ms: _Optional[int] = ..., full_interval_ms: _Optional[int] = ..., ping_interval_ms: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., want_full_state: bool = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("message_bytes", "series", "samples_per_second", "handshake_s")
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SERIES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    HANDSHAKE_S_FIELD_NUMBER: _ClassVar[int]
    message_bytes: int
    series: int
    samples_per_second: int
    handshake_s: int
    def __init__(self, message_bytes: _Optional[int] = ..., series: _Optional[int] = ..., samples_per_second: _Optional[int] = ..., handshake_s: _Optional[int] = ...) -> None: ...

class SequenceRange(_message.Message):
    __slots__ = ("first", "last")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "text", "retry_after_ms", "supported_versions")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    SUPPORTED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    reason: RefusalReason
    text: str
    retry_after_ms: int
    supported_versions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, reason: _Optional[_Union[RefusalReason, str]] = ..., text: _Optional[str] = ..., retry_after_ms: _Optional[int] = ..., supported_versions: _Optional[_Iterable[int]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("ranges",)
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ranges: _containers.RepeatedCompositeFieldContainer[SequenceRange]
    def __init__(self, ranges: _Optional[_Iterable[_Union[SequenceRange, _Mapping]]] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("id", "sent_unix_ns", "rtt_ms", "clock_offset_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    SENT_UNIX_NS_FIELD_NUMBER: _ClassVar[int]
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_OFFSET_S_FIELD_NUMBER: _ClassVar[int]
    id: int
    sent_unix_ns: int
    rtt_ms: float
    clock_offset_s: float
    def __init__(self, id: _Optional[int] = ..., sent_unix_ns: _Optional[int] = ..., rtt_ms: _Optional[float] = ..., clock_offset_s: _Optional[float] = ...) -> None: ...

class Poll(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class Throttle(_message.Message):
    __slots__ = ("flush_interval_ms", "full_interval_ms", "pause_ms", "reason")
    FLUSH_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    FULL_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
    PAUSE_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    flush_interval_ms: int
    full_interval_ms: int
    pause_ms: int
    reason: str
    def __init__(self, flush_interval_ms: _Optional[int] = ..., full_interval_ms: _Optional[int] = ..., pause_ms: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class LimitNotice(_message.Message):
    __slots__ = ("series_limit", "series_used", "refused_refs", "refused_total", "text")
    SERIES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    SERIES_USED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_REFS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    series_limit: int
    series_used: int
    refused_refs: _containers.RepeatedScalarFieldContainer[int]
    refused_total: int
    text: str
    def __init__(self, series_limit: _Optional[int] = ..., series_used: _Optional[int] = ..., refused_refs: _Optional[_Iterable[int]] = ..., refused_total: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class Violation(_message.Message):
    __slots__ = ("kind", "text", "sequence")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    kind: ViolationKind
    text: str
    sequence: int
    def __init__(self, kind: _Optional[_Union[ViolationKind, str]] = ..., text: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class ConfigPush(_message.Message):
    __slots__ = ("hash", "content", "content_type")
    HASH_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    hash: bytes
    content: bytes
    content_type: str
    def __init__(self, hash: _Optional[bytes] = ..., content: _Optional[bytes] = ..., content_type: _Optional[str] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("id", "kind", "name", "arguments", "expires_unix_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    kind: CommandKind
    name: str
    arguments: _containers.RepeatedCompositeFieldContainer[Attribute]
    expires_unix_ms: int
    def __init__(self, id: _Optional[int] = ..., kind: _Optional[_Union[CommandKind, str]] = ..., name: _Optional[str] = ..., arguments: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., expires_unix_ms: _Optional[int] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("reconnect_within_ms", "deadline_ms", "reason")
    RECONNECT_WITHIN_MS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    reconnect_within_ms: int
    deadline_ms: int
    reason: str
    def __init__(self, reconnect_within_ms: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...
