from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import report
from bench.__main__ import main
from bench.catalogue import BENCHES

NAMES = ["stub", "stream", "ring", "storage", "ingest", "disk", "memory", "recovery", "fleet", "freshness", "page"]


def test_list_names_every_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    assert [bench.name for bench in BENCHES] == NAMES
    for name in NAMES:
        assert f" {name} " in out


def test_an_unknown_name_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ring", "rings"]) == 1
    err = capsys.readouterr().err
    assert "rings" in err
    assert "freshness" in err


def test_no_name_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "stub" in capsys.readouterr().err


STAGES = ("rings", "wal_lists", "wal_encode", "wal_sync", "wal_read", "order", "segment", "whole")
QUICK = {
    "stub": {
        ("counter", "ns_per_call"),
        ("task", "ns_per_call"),
        ("overhead", "cpu_percent"),
        ("overhead", "rss_above_grpc_mb"),
    },
    "stream": {("flood", "cpu_us_per_message"), ("1 Hz", "cpu_us_per_message")},
    "ring": {("append 10", "rows_per_s"), ("append 10000", "samples_per_s"), ("matrix 1000x60", "cells_per_s")},
    "storage": {
        *((f"write {width}", f"{stage}_ns_per_sample") for width in (100, 1000) for stage in STAGES),
        ("day, metric", "select_ms"),
        ("day, agent", "select_ms"),
    },
    "ingest": {(case, figure) for case in ("100", "1000", "10000") for figure in ("samples_per_cpu_s", "ack_p99_ms")},
    "disk": {
        (case, figure)
        for case in ("realistic", "gauges", "random", "sparse", "irregular", "histograms")
        for figure in ("bytes_per_sample", "rollup_bytes_per_sample")
    },
    "memory": {("5000", "rss_bytes_per_series"), ("5000", "rss_mb")},
    "recovery": {("10000", "ready_s"), ("10000", "first_answer_s"), ("10000", "replayed_samples_per_s")},
    "fleet": {("20", "server_cpu_percent"), ("20", "memory_per_connection_kb"), ("20", "ping_rtt_p99_ms")},
    "freshness": {("default", "visible_p50_ms"), ("default", "visible_p99_ms")},
    "page": {("20", "first_contentful_paint_ms"), ("20", "longest_task_ms")},
}
PEERS = {
    "stub": {"prometheus_client", "opentelemetry"},
    "stream": {"grpc.aio"},
    "memory": {"victoriametrics", "prometheus"},
    "recovery": {"victoriametrics", "prometheus"},
}
OURS_ALONE = {"cpu_percent", "rss_above_grpc_mb", "first_answer_s", "replayed_samples_per_s"}  # or not of every peer
MAY_BE_ZERO = {"longest_task_ms", "cpu_percent"}  # below what a quick run can see


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_writes_its_rows_and_a_picture(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "OUT", tmp_path / "out")
    peers = ["--peers"] if name in PEERS else []
    assert main([name, "--quick", "--agents", "20", *peers, "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["bench"] for row in rows} == {name}
    assert QUICK[name] <= {(row["case"], row["figure"]) for row in rows}
    for row in rows:
        if row["figure"] not in OURS_ALONE:
            assert row["peers"].keys() == PEERS.get(name, set())
        assert set(row) == {"bench", "case", "figure", "unit", "median", "spread", "peers", "ratios"}
        assert row["median"] > 0 or row["figure"] in MAY_BE_ZERO
    assert (tmp_path / "out" / f"{name}.png").stat().st_size > 1000
