"""Settings: the later source wins, and every refusal names the key, what was got, what was expected, what to do."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from collectord import config_file
from collectord.config import Address, Config, ConfigError, Health, Log, parse_address


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "collectord.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_nothing_given_is_the_default() -> None:
    assert config_file.load(None, {}, {}) == Config()


def test_later_sources_win(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'data_dir = "from-file"\n[health]\nphi = 5\n[log]\nlevel = "debug"\n[grpc]\nlisten = "127.0.0.1:1"\n'
    )
    environ = {"COLLECTORD_HEALTH_PHI": "6.5", "COLLECTORD_GRPC_LISTEN": "127.0.0.1:2"}
    config = config_file.load(path, environ, {"grpc.listen": "127.0.0.1:3"})
    assert config.data_dir == "from-file"
    assert config.health == Health(phi=6.5)
    assert config.log == Log(level="debug")
    assert config.grpc.listen == "127.0.0.1:3"


def test_origins_say_where_each_value_came_from(tmp_path: Path) -> None:
    path = write(tmp_path, "[health]\nphi = 5\nstuck_after_s = 9\n")
    loaded = config_file.load_with_origins(path, {"COLLECTORD_HEALTH_PHI": "6"}, {"data_dir": "d"})
    assert loaded.origins == {
        "health.phi": "environment COLLECTORD_HEALTH_PHI",
        "health.stuck_after_s": f"file {path}",
        "data_dir": "option",
    }


@pytest.mark.parametrize(
    ("name", "text", "key", "expected"),
    [
        ("COLLECTORD_DATA_DIR", "/var/lib/x", "data_dir", "/var/lib/x"),
        ("COLLECTORD_INSECURE", "true", "insecure", True),
        ("COLLECTORD_INSECURE", "0", "insecure", False),
        ("COLLECTORD_GRPC", "127.0.0.1:9", "grpc.listen", "127.0.0.1:9"),
        ("COLLECTORD_HTTP_LISTEN", "[::1]:9", "http.listen", "[::1]:9"),
        ("COLLECTORD_RINGS_MEMORY_BYTES", "256MiB", "rings.memory_bytes", 256 << 20),
        ("COLLECTORD_RINGS_MEMORY_BYTES", "1.5 GB", "rings.memory_bytes", 1_500_000_000),
        ("COLLECTORD_RINGS_MEMORY_BYTES", "2_000_000", "rings.memory_bytes", 2_000_000),
        ("COLLECTORD_HEALTH_OFFLINE_AFTER_S", "2m", "health.offline_after_s", 120.0),
        ("COLLECTORD_HEALTH_OFFLINE_AFTER_S", "500ms", "health.offline_after_s", 0.5),
        ("COLLECTORD_INGEST_FLUSH_INTERVAL_MS", "1s", "ingest.flush_interval_ms", 1000),
        ("COLLECTORD_INGEST_TICK_MS", "7ms", "ingest.tick_ms", 7.0),
    ],
)
def test_text_is_read_in_the_settings_type_and_unit(name: str, text: str, key: str, expected: object) -> None:
    value: object = config_file.load(None, {name: text}, {})
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_the_full_name_wins_over_the_short_one() -> None:
    environ = {"COLLECTORD_GRPC_LISTEN": "127.0.0.1:1", "COLLECTORD_GRPC": "127.0.0.1:2"}
    assert config_file.load(None, environ, {}).grpc.listen == "127.0.0.1:1"


def test_names_of_the_stub_and_of_kubernetes_are_left_alone() -> None:
    environ = {"COLLECTORD_ENDPOINT": "x:1", "COLLECTORD_TOKEN": "t", "COLLECTORD_SERVICE_HOST": "10.0.0.1"}
    assert config_file.load(None, environ, {}) == Config()


@pytest.mark.parametrize(
    ("environ", "parts"),
    [
        ({"COLLECTORD_HEALTH_PHY": "1"}, ["COLLECTORD_HEALTH_PHY", "did you mean COLLECTORD_HEALTH_PHI"]),
        ({"COLLECTORD_HEALTH_PHI": "high"}, ["health.phi", "'high'", "COLLECTORD_HEALTH_PHI", "a number", "8.0"]),
        ({"COLLECTORD_HEALTH_PHI": "nan"}, ["health.phi", "'nan'", "expected a number"]),
        ({"COLLECTORD_HEALTH_PHI": "-1"}, ["health.phi", "-1", "above 0", "COLLECTORD_HEALTH_PHI"]),
        ({"COLLECTORD_HEALTH_PHI": "0"}, ["health.phi", "got 0.0", "above 0", "COLLECTORD_HEALTH_PHI", "correct"]),
        ({"COLLECTORD_RINGS_SLOTS": "99.5"}, ["rings.slots", "'99.5'", "a whole number"]),
        ({"COLLECTORD_RINGS_MEMORY_BYTES": "1 s"}, ["rings.memory_bytes", "'1 s'", "256MiB"]),
        ({"COLLECTORD_HEALTH_PHI": "8s"}, ["health.phi", "'8s'", "a number"]),
        ({"COLLECTORD_INSECURE": "maybe"}, ["insecure", "'maybe'", "true or false"]),
        ({"COLLECTORD_LOG_LEVEL": "loud"}, ["log.level", "'loud'", "debug, info, warning or error"]),
        ({"COLLECTORD_HTTP": "127.0.0.1"}, ["http.listen", "'127.0.0.1'", "HOST:PORT"]),
        ({"COLLECTORD_HTTP": "127.0.0.1:65536"}, ["http.listen", "HOST:PORT"]),
        ({"COLLECTORD_GRPC": "0.0.0.0:4317"}, ["grpc.listen", "0.0.0.0:4317", "127.0.0.1:4317", "insecure = true"]),
        ({"COLLECTORD_HTTP": "0.0.0.0:4318"}, ["http.listen", "loopback", "COLLECTORD_INSECURE"]),
        ({"COLLECTORD_HTTP": ":4318"}, ["http.listen", "got ':4318'", "HOST:PORT"]),
        ({"COLLECTORD_HTTP": "[::]:4318"}, ["http.listen", "loopback"]),
        ({"COLLECTORD_HTTP": "collectord.example:4318"}, ["http.listen", "loopback"]),
    ],
)
def test_a_wrong_environment_is_refused_by_name(environ: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config_file.load(None, environ, {})
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[health]\nphy = 8\n", ["health.phy", "did you mean health.phi"]),
        ("[helth]\nphi = 8\n", ["[helth]", "did you mean health"]),
        ("dta_dir = 'x'\n", ["dta_dir", "did you mean data_dir"]),
        ("health = 8\n", ["health", "got 8", "[health]"]),
        ("data_dir = 8\n", ["data_dir", "got 8", "text"]),
        ("[data_dir]\nx = 1\n", ["data_dir", "expected text"]),
        ("insecure = 1\n", ["insecure", "got 1", "true or false"]),
        ("[health]\nphi = true\n", ["health.phi", "got True", "a number"]),
        ("[rings]\nslots = [1]\n", ["rings.slots", "got [1]", "a whole number"]),
        ("[health\n", ["collectord.toml", "not TOML", "line 1"]),
        (b"data_dir = '\xff'\n", ["collectord.toml", "UTF-8"]),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str | bytes, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        config_file.load(path, {}, {})
    for part in [path, *parts]:
        assert part in str(caught.value)


def test_a_missing_file_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.toml: No such file"):
        config_file.load(str(tmp_path / "absent.toml"), {}, {})


def test_an_open_listener_is_allowed_when_told(tmp_path: Path) -> None:
    config = config_file.load(write(tmp_path, 'insecure = true\n[grpc]\nlisten = "0.0.0.0:4317"\n'), {}, {})
    assert config.grpc.listen == "0.0.0.0:4317"


def test_what_is_printed_is_read_back_the_same(tmp_path: Path) -> None:
    first = config_file.load_with_origins(
        None, {"COLLECTORD_HEALTH_PHI": "1e-7"}, {"data_dir": 'a "quoted" \\ \x7f name\n', "grpc.listen": "[::1]:0"}
    )
    again = config_file.load(write(tmp_path, config_file.to_toml(first)), {}, {})
    assert again == first.config


def test_every_setting_is_printed_with_its_origin_and_meaning() -> None:
    lines = config_file.to_toml(config_file.load_with_origins(None, {"COLLECTORD_LOG_LEVEL": "debug"}, {})).splitlines()
    assert sum(" = " in line for line in lines) == len(config_file.settings())
    assert any(re.match(r'level = "debug" +# environment COLLECTORD_LOG_LEVEL: debug, info', line) for line in lines)
    assert any(re.match(r"phi = 8.0 +# default: suspicion", line) for line in lines)


def test_no_environment_name_means_two_settings() -> None:
    names = [setting.env for setting in config_file.settings().values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("text", "address", "loopback", "reachable"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80), True, "127.0.0.1:80"),
        ("127.8.8.8:80", Address("127.8.8.8", 80), True, "127.8.8.8:80"),
        ("localhost:0", Address("localhost", 0), True, "localhost:0"),
        ("[::1]:80", Address("::1", 80), True, "[::1]:80"),
        ("[::]:80", Address("::", 80), False, "[::1]:80"),
        ("0.0.0.0:80", Address("0.0.0.0", 80), False, "127.0.0.1:80"),
        ("10.1.2.3:80", Address("10.1.2.3", 80), False, "10.1.2.3:80"),
        ("localhost.example:80", Address("localhost.example", 80), False, "localhost.example:80"),
    ],
)
def test_addresses_are_read_and_told_apart(text: str, address: Address, loopback: bool, reachable: str) -> None:
    assert parse_address(text) == address
    assert address.is_loopback is loopback
    assert str(address.reachable) == reachable


@pytest.mark.parametrize("text", ["", ":4317", "127.0.0.1", "4317", "::1:4317", "a:b", "a:-1", "a:65536", "a:²"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


def test_sections_refuse_values_outside_their_bounds() -> None:
    with pytest.raises(ConfigError, match=r"health\.phi: got 0, expected a number above 0"):
        replace(Health(), phi=0)
