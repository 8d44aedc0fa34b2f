"""Where the spool lies, and an agent that finds no place for it: real processes, each with its own environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_ledger import Agent, Ledger

NOWHERE = {
    "no home": {"HOME": "", "COLLECTORD_SPOOL_DIR": ""},
    "a home that is none": {"HOME": "nowhere", "COLLECTORD_SPOOL_DIR": ""},
    "a folder that cannot be": {"COLLECTORD_SPOOL_DIR": "/dev/null/spool"},
    "a folder that nobody may write": {"COLLECTORD_SPOOL_DIR": "/proc/spool"},
}


@pytest.mark.parametrize("where", NOWHERE)
def test_without_a_place_for_a_spool_memory_does_and_one_warning_says_so(tmp_path: Path, where: str) -> None:
    script = """
        import agent_stub, time
        import agent_stub.transport
        agent_stub.transport.TICK_S = 0.1
        mon = agent_stub.start("a", "{endpoint}")
        mon.settings.__dict__["spool_age_s"] = 0.0
        for number in range(30):
            mon.event("e", number=number)
            time.sleep(0.03)
        print("ready", flush=True)
        assert mon.flush(30)
    """
    with Ledger() as collector:
        collector.stop()
        agent = Agent(tmp_path, collector.endpoint, script, **NOWHERE[where])
        assert agent.line() == "ready"
        collector.start()
        status, _, err = agent.end()
        assert status == 0
        numbers = [e.fields[0].whole for m in collector.messages("events") for e in m.events]
        assert sorted(set(numbers)) == list(range(30))
        warnings = [line for line in err.splitlines() if "spool" in line.lower()]
        assert len(warnings) == 1, err


def test_a_spool_of_no_bytes_writes_nothing_anywhere(tmp_path: Path) -> None:
    script = """
        import agent_stub, time
        mon = agent_stub.start("a", "127.0.0.1:1")
        mon.settings.__dict__["spool_age_s"] = 0.0
        mon.event("e")
        time.sleep(2)
    """
    status, _, err = Agent(tmp_path, "", script, COLLECTORD_SPOOL_BYTES="0", COLLECTORD_SPOOL_ALWAYS="1").end()
    assert status == 0
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_spool_is_under_the_users_folder_for_state_unless_told_otherwise(tmp_path: Path) -> None:
    script = """
        import agent_stub
        mon = agent_stub.start("a/b", "127.0.0.1:1")
        mon.event("e")
        mon.close()
    """
    environment = {"COLLECTORD_SPOOL_DIR": "", "HOME": str(tmp_path / "home")}
    assert Agent(tmp_path, "", script, **environment).end()[0] == 0
    assert list((tmp_path / "home/.local/state/collectord/a%2Fb").glob("*/*.spool"))
    assert Agent(tmp_path, "", script, **environment, XDG_STATE_HOME=str(tmp_path / "state")).end()[0] == 0
    assert list((tmp_path / "state/collectord/a%2Fb").glob("*/*.spool"))
