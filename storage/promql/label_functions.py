"""label_replace and label_join: they look at labels only, once for each distinct value (promql/functions.go)."""

from __future__ import annotations

import re
from typing import Final

import numpy as np
import re2

from storage.matchers import MAX_MEMORY_BYTES
from storage.promql.errors import failed
from storage.promql.form import Rows, merged
from storage.promql.labels import Column, LabelTable, mixed
from storage.promql.text import is_label_name, valid

_REFERENCE: Final = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))", re.ASCII)


def replaced(rows: Rows, target: str, template: str, source: str, pattern: str) -> Rows:
    """The label `target` from what the pattern finds in `source`, for the series where it matches as a whole."""
    compiled = _compiled(pattern)
    if not is_label_name(target):
        raise failed(f"invalid destination label name in label_replace(): {valid(target)}")
    given, old = rows.labels.column(source).tidy(), rows.labels.column(target).tidy()
    matches = [compiled.fullmatch(word.encode()) for word in given.words]
    words = ["" if match is None else _expanded(valid(template), match, compiled) for match in matches]
    hit = np.array([match is not None for match in matches], np.bool_)[given.codes]
    codes = np.where(hit, given.codes, old.codes + len(words))
    return merged(Rows(_with(rows.labels, target, Column(codes, words + old.words)), rows.values, rows.present))


def joined(rows: Rows, target: str, between: str, sources: tuple[str, ...]) -> Rows:
    """The label `target` from the values of others, in their order."""
    for name in sources:
        if not is_label_name(name):
            raise failed(f"invalid source label name in label_join(): {valid(name)}")
    if not is_label_name(target):
        raise failed(f"invalid destination label name in label_join(): {valid(target)}")
    columns = [rows.labels.column(name).tidy() for name in sources]
    if not columns:
        return merged(Rows(_with(rows.labels, target, _nothing(rows.labels)), rows.values, rows.present))
    distinct, first, codes = np.unique(
        mixed([column.codes for column in columns]), return_index=True, return_inverse=True
    )
    words = [
        valid(between).join(column.words[column.codes[row]] for column in columns)
        for row in first[: len(distinct)].tolist()
    ]
    return merged(Rows(_with(rows.labels, target, Column(codes.reshape(-1), words)), rows.values, rows.present))


def _nothing(labels: LabelTable) -> Column:
    return Column(np.zeros(labels.count, np.int64), [""])


def _with(labels: LabelTable, name: str, column: Column) -> LabelTable:
    return labels.with_column(name, column) if labels.count else labels


def _compiled(pattern: str) -> re2._Regexp[bytes]:
    options = re2.Options()
    options.dot_nl = True
    options.log_errors = False
    options.max_mem = MAX_MEMORY_BYTES
    try:
        return re2.compile(pattern.encode(), options)
    except (re2.error, UnicodeEncodeError):
        raise failed(f"invalid regular expression in label_replace(): {valid(pattern)}") from None
    finally:
        re2.purge()


def _expanded(template: str, match: re2._Match[bytes], compiled: re2._Regexp[bytes]) -> str:
    """The template with what was found: $1, ${1}, $name, ${name}, $$ (regexp.Expand of Go: the longest name counts)."""

    def one(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name is None:
            return "$"
        if name.isdigit():
            group = match.group(int(name)) if int(name) <= compiled.groups else None
        else:
            number = compiled.groupindex.get(name.encode()) or compiled.groupindex.get(name)
            group = match.group(number) if number else None
        return "" if group is None else group.decode("utf-8", "replace")

    return _REFERENCE.sub(one, template)
