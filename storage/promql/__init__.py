"""The embedded PromQL engine. README.md says how it is laid out."""

from storage.promql.engine import Engine
from storage.promql.errors import Limits, QueryError
from storage.promql.query import Stats
from storage.promql.result import Result

__all__ = ["Engine", "Limits", "QueryError", "Result", "Stats"]
