"""One table of settings: where values come from, what is refused, what is made of it."""

from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from msgspec import Struct
from rollcall.node.settings import TABLE, Member, Settings, build, load
from rollcall.node.settings.__main__ import markdown, sample
from rollcall.node.settings.table import Setting, about, table_of
from rollcall.replication.errors import Invalid

REPOSITORY = Path(__file__).resolve().parents[3]

ONE_NODE = {"ROLLCALL_NODE_ID": "n1", "ROLLCALL_DATA_DIR": "/data"}
THREE = ",".join(f"n{i}=127.0.0.1:{9500 + i}/http://127.0.0.1:{8500 + i}" for i in range(3))


def loaded(*argv: str, **env: str) -> Settings:
    return load(argv, {**ONE_NODE, **{name.upper(): value for name, value in env.items()}})


def refused(*argv: str, **env: str) -> Invalid:
    with pytest.raises(Invalid) as caught:
        loaded(*argv, **env)
    return caught.value


# Where values come from


def test_one_node_needs_only_an_id_and_a_directory():
    settings = loaded()

    assert settings.node_id == "n1"
    assert settings.data_dir == Path("/data")
    assert settings.members == (Member("n1", "127.0.0.1:9500", "http://127.0.0.1:8500"),)


def test_a_flag_wins_over_a_variable_over_the_file_over_the_default(tmp_path: Path):
    file = tmp_path / "node.toml"
    file.write_text("[server]\nthreads = 100\nconnection_limit = 1111\nthreads_reserved = 9\n")

    settings = loaded(
        "--threads", "300", "--config", str(file), rollcall_threads="200", rollcall_connection_limit="2222"
    )

    assert settings.threads == 300
    assert settings.connection_limit == 2222
    assert settings.threads_reserved == 9
    assert settings.http_port == 8500


def test_the_file_can_be_named_by_a_variable(tmp_path: Path):
    file = tmp_path / "node.toml"
    file.write_text('[log]\nlog_format = "json"\n')

    assert loaded(rollcall_config=str(file)).log_format == "json"


def test_members_are_read_from_text_and_from_tables_alike(tmp_path: Path):
    file = tmp_path / "node.toml"
    tables = (
        f'[[cluster.members]]\nid = "n{i}"\nraft = "127.0.0.1:{9500 + i}"\nhttp = "http://127.0.0.1:{8500 + i}/"'
        for i in range(3)
    )
    file.write_text("\n".join(tables))
    ports = ("--node-id", "n2", "--http-port", "8502", "--raft-port", "9502")

    from_tables = loaded("--config", str(file), *ports)
    from_text = loaded("--members", THREE, *ports)

    assert from_tables.members == from_text.members
    assert [member.id for member in from_text.members] == ["n0", "n1", "n2"]


def test_every_setting_can_be_given_as_flag_as_variable_and_in_the_file(tmp_path: Path):
    original = loaded("--node-id", "n1", "--members", THREE, "--http-port", "8501", "--raft-port", "9501")
    texts = {s.name: _text(getattr(original, s.name)) for s in TABLE}
    flags = [
        word for s in TABLE for word in ([s.flag, texts[s.name]] if s.type is not bool else [f"--no-{s.flag[2:]}"])
    ]
    file = tmp_path / "node.toml"
    file.write_text("".join(f'[{s.section}]\n{s.key} = "{texts[s.name]}"\n' for s in TABLE[:1]))

    assert load(flags, {}) == original
    assert load([], {s.env: texts[s.name] for s in TABLE}) == original
    for s in TABLE:
        file.write_text(f'[{s.section}]\n{s.key} = "{texts[s.name]}"\n')
        others = {other.env: texts[other.name] for other in TABLE if other is not s}
        assert load(["--config", str(file)], others) == original, s.name


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


# What is refused


def test_a_misspelt_flag_variable_or_key_names_the_nearest_that_exists(tmp_path: Path):
    file = tmp_path / "node.toml"

    assert "did you mean --threads?" in refused("--treads", "4").message
    assert "did you mean ROLLCALL_LOG_LEVEL?" in refused(rollcall_log_levl="info").message
    file.write_text("[server]\ntreads = 4\n")
    assert "did you mean server.threads?" in refused("--config", str(file)).message
    file.write_text("[sever]\nthreads = 4\n")
    assert "did you mean [server]?" in refused("--config", str(file)).message


def test_the_variables_of_the_command_line_tool_are_not_a_nodes_mistake():
    assert loaded(rollcall_nodes="http://127.0.0.1:1").node_id == "n1"


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path: Path):
    file = tmp_path / "node.toml"
    assert "cannot be read: No such file" in refused("--config", str(file)).message
    file.write_text("threads = ")
    assert "is not TOML" in refused("--config", str(file)).message
    file.write_bytes(b"\xff\xfe")
    assert "is not TOML" in refused("--config", str(file)).message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = " + b"[" * 100_000, "is nested too deep"),
        (b"[http]\nhttp_port = " + b"[" * 5000 + b"]" * 5000, "is nested too deep"),
        (b"[http]\nhttp_port = " + b"9" * 5000, "is not TOML"),
        (b"#" * 2_000_000, "is larger than 1048576 bytes"),
        (b'[http]\nhttp_host = "a\\u0000b"', "expected text without NUL"),
        (b'[[cluster.members]]\nid = "n1"\nraft = "a\\u0000b:1"\nhttp = "http://h:1"', "expected text without NUL"),
        (b"[cluster]\nmembers = [[1]]", "expected a table"),
        (b"[cluster]\nmembers = [{id = 1}]", "expected text"),
        (b"[http]\nhttp_port = 1979-05-27", "expected a whole number"),
        (b"[http]\nwrite_timeout_s = nan", "expected a number"),
    ],
)
def test_a_file_of_any_content_is_refused_in_words(tmp_path: Path, content: bytes, said: str):
    file = tmp_path / "node.toml"
    file.write_bytes(content)

    assert said in refused("--config", str(file)).message


@pytest.mark.parametrize("setting", TABLE, ids=lambda setting: setting.name)
def test_bytes_that_are_no_text_are_refused_in_words(setting: Setting):
    """As the system hands them on in flags and variables."""
    if setting.type is not bool:
        assert setting.flag in refused(setting.flag, "n1\udcff").message
    assert setting.env in refused(**{setting.env: "n1\udcff"}).message
    assert "--config: expected text in UTF-8" in refused("--config", "/\udcff").message
    assert "unknown flag" in refused("--\udcff").message


def test_a_home_that_does_not_exist_is_refused_in_words():
    assert "there is no such user" in refused("--data-dir", "~no-such-user-here/x").message
    files = ("--tls-cert", "~no-such-user-here/c", "--tls-key", "k", "--tls-ca", "a")
    assert refused(*files).message.startswith("tls_cert: there is no such user")


def test_an_ipv6_address_is_written_without_brackets():
    assert refused("--http-host", "[::1]").message.startswith("http_host: write an IPv6 address without brackets")


# What Kubernetes puts into every pod beside them

LINKS = {
    "ROLLCALL_SERVICE_HOST": "10.96.0.12", "ROLLCALL_SERVICE_PORT": "8500", "ROLLCALL_SERVICE_PORT_HTTP": "8500",
    "ROLLCALL_PORT": "tcp://10.96.0.12:8500", "ROLLCALL_PORT_8500_TCP": "tcp://10.96.0.12:8500",
    "ROLLCALL_PORT_8500_TCP_PROTO": "tcp", "ROLLCALL_PORT_8500_TCP_PORT": "8500",
    "ROLLCALL_PORT_8500_TCP_ADDR": "10.96.0.12", "ROLLCALL_PORT_8600_UDP": "udp://[fd00::c]:8600",
}  # fmt: skip


@pytest.mark.parametrize("service", ["", "_HTTP", "_RAFT", "_DNS", "_GATEWAY"])
def test_links_to_a_service_of_our_name_are_no_settings(service: str):
    """A Service called rollcall-http sets ``ROLLCALL_HTTP_PORT``, which is the name of a setting."""
    links = {name.replace("ROLLCALL", f"ROLLCALL{service}", 1): value for name, value in LINKS.items()}

    assert loaded(**links) == loaded()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ROLLCALL_HTTP_PORT", "tcp:/10.0.0.1:8500"),
        ("ROLLCALL_HTTP_PORT", "tcp://10.0.0.1"),
        ("ROLLCALL_HTTP_PORT", "tcp://rollcall:8500"),
        ("ROLLCALL_HTTP_PORT", "http://10.0.0.1:8500"),
        ("ROLLCALL_HTTP_PORT", "85000"),
        ("ROLLCALL_PORT", "8500"),
        ("ROLLCALL_SERVICE_HOST", "rollcall"),
        ("ROLLCALL_SERVICE_PORT", "http"),
        ("ROLLCALL_HOST", "10.96.0.12"),
        ("ROLLCALL_PORT_8500_TCP_PROTO", "http"),
    ],
)
def test_what_only_resembles_such_a_link_is_still_a_mistake(name: str, value: str):
    assert name in refused(**{name: value}).message


def test_what_a_sidecar_tells_its_program_is_no_setting():
    assert loaded(rollcall_discovery="http://127.0.0.1:1") == loaded()


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--threads", "many", "--threads: expected a whole number, got 'many'"),
        ("--threads", "3", "expected a whole number >= 4"),
        ("--http-port", "0", "expected a whole number >= 1"),
        ("--http-port", "65536", "expected a whole number <= 65535"),
        ("--write-timeout-s", "nan", "expected a number > 0"),
        ("--write-timeout-s", "inf", "expected a number <="),
        ("--write-timeout-s", "-1", "expected a number > 0"),
        ("--protection-threshold", "1", "expected a number < 1"),
        ("--lease-ttl-s-min", "1", "expected a number >= 2"),
        ("--log-level", "loud", "expected one of debug, info, warning, error, got 'loud'"),
        ("--node-id", "a b", "letters, digits"),
        ("--data-dir", "", "expected text of length >= 1"),
        ("--members", "n1", "expected ID=HOST:RAFT_PORT/http://HOST:HTTP_PORT, got 'n1'"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_source_and_the_bound(flag: str, value: str, said: str):
    error = refused(flag, value)

    assert said in error.message
    assert error.message.startswith(flag)
    assert error.field == flag.removeprefix("--").replace("-", "_")


def test_what_is_required_says_all_three_ways_to_give_it():
    with pytest.raises(Invalid, match=r"--node-id, ROLLCALL_NODE_ID, or node_id in \[node\]"):
        load([], {})


def test_a_flag_without_its_value_is_invalid_and_does_not_end_the_process():
    assert "--threads" in refused("--threads").message


def test_a_number_may_be_spelt_as_people_do():
    assert loaded("--heartbeat-period-s", ".05").heartbeat_period_s == 0.05


# What must hold between settings


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_binding_every_address_needs_an_advertised_one(host: str):
    assert "set http_advertise" in refused("--http-host", host).message
    assert "set raft_advertise" in refused("--raft-host", host, "--insecure").message


def test_nodes_speak_plain_tcp_beyond_this_machine_only_when_told_so():
    flags = ("--raft-host", "10.0.0.1")

    said = refused(*flags).message
    assert "set tls_cert, tls_key and tls_ca (rollcall-node certs makes them), or" in said
    assert "set insecure = true" in said
    assert loaded(*flags, "--insecure").raft_advertise == "10.0.0.1:9500"
    assert loaded(*flags, "--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a").tls_key == "k"
    assert not loaded("--raft-host", "127.0.0.2").insecure
    assert not loaded("--raft-host", "::1").insecure
    assert loaded("--raft-host", "::1").raft_advertise == "[::1]:9500"


def test_tls_needs_all_of_its_files():
    assert "tls_key, tls_ca missing: TLS needs all of tls_cert, tls_key, tls_ca" in refused("--tls-cert", "c").message
    assert "tls_cert missing" in refused("--tls-key", "k", "--tls-ca", "a", "--insecure").message


def test_a_node_is_not_told_to_be_secure_and_insecure_at_once():
    flags = ("--tls-cert", "c", "--tls-key", "k", "--tls-ca", "a", "--insecure")

    assert "allows plain TCP, and tls_cert is set: remove one of them" in refused(*flags).message


def test_relations_are_stated_in_the_operators_words():
    said = refused("--election-timeout-s-min", "0.4", "--heartbeat-period-s", "0.2").message

    assert said.startswith("election_timeout_s_min (0.4) must be > 3 * heartbeat_period_s (0.2)")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--election-timeout-s-max 0.4", "election_timeout_s_max (0.4) must be > election_timeout_s_min (0.4)"),
        ("--leader-fallback-s 0.9", "leader_fallback_s (0.9) must be >= election_timeout_s_max (1)"),
        ("--write-timeout-s 1", "write_timeout_s (1) must be > election_timeout_s_max (1)"),
        ("--lease-ttl-s 5 --lease-ttl-s-min 6", "lease_ttl_s (5) must be >= lease_ttl_s_min (6)"),
        ("--threads 48", "threads (48) must be > threads_reserved (48)"),
        ("--connection-limit 500", "connection_limit (500) must be >= threads (640)"),
        ("--batch-body-bytes-max 2048", "batch_body_bytes_max (2048) must be >= body_bytes_max (262144)"),
        ("--batch-body-bytes-max 4000000", "batch_body_bytes_max (4000000) must be <= 2097152"),
        ("--raft-port 8500", "http_port and raft_port are both 8500"),
        ("--http-advertise 10.0.0.1:8500", "http_advertise: expected http://HOST:PORT"),
        ("--http-advertise http://h:8500/path", "http_advertise: expected http://HOST:PORT"),
        ("--raft-advertise 10.0.0.1", "raft_advertise: expected HOST:PORT"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(flags: str, said: str):
    assert said in refused(*flags.split()).message


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ("n1=127.0.0.1:9500/http://127.0.0.1:8500,n2=h:1/http://h:2", "members lists 2 nodes: use 1, 3, 5 or 7"),
        (",".join(f"n{i}=h{i}:1/http://h{i}:2" for i in range(9)), "members lists 9 nodes"),
        ("n2=127.0.0.1:9500/http://127.0.0.1:8500", "node_id (n1) is not in members (n2)"),
        ("n1=127.0.0.1:9501/http://127.0.0.1:8500", "members says that n1 is at 127.0.0.1:9501, but raft_advertise is"),
        ("n1=127.0.0.1:9500/http://127.0.0.1:8501", "but http_advertise is http://127.0.0.1:8500"),
        ("n1=h:1/http://h:2,n1=h:3/http://h:4,n3=h:5/http://h:6", "two members have the same id (n1)"),
        ("n1=h:1/http://h:2,n2=h:1/http://h:4,n3=h:5/http://h:6", "two members have the same raft (h:1)"),
        ("n1=h/http://h:2", "members: n1: expected HOST:PORT, got 'h'"),
        ("n1=h:1/h:2", "members: n1: expected http://HOST:PORT"),
        ("n 1=h:1/http://h:2", "got 'n 1'"),
    ],
)
def test_a_list_of_members_that_cannot_work_is_refused(members: str, said: str):
    assert said in refused("--members", members).message


# What is made of the table


def test_settings_that_must_agree_are_plain_data_and_equal_on_nodes_that_agree():
    first = loaded("--node-id", "n0", "--members", THREE, "--http-port", "8500", "--raft-port", "9500")
    reversed_list = ",".join(reversed(THREE.split(",")))
    second = loaded("--node-id", "n1", "--members", reversed_list, "--http-port", "8501", "--raft-port", "9501")
    other = loaded("--lease-ttl-s", "30")

    assert first.agreement() == second.agreement()
    assert msgspec.json.decode(msgspec.json.encode(first.agreement()))["lease_ttl_s"] == 90
    assert first.agreement() != other.agreement()
    assert "data_dir" not in first.agreement()


def test_a_secret_is_not_shown():
    class WithSecret(Struct):
        name: Annotated[str, about("node", "a name")] = "x"
        token: Annotated[str, about("node", "a secret", secret=True)] = ""

    name, token = table_of(WithSecret)

    assert name.shown("visible") == "'visible'"
    assert token.shown("hunter2") == "'***'"
    assert token.shown("") == "''"


def test_settings_print_themselves_by_the_table():
    assert repr(build(node_id="n1", data_dir=Path("/data"))).startswith("Settings(node_id='n1', data_dir='/data',")


def test_help_names_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        load(["--help"], {})
    shown = capsys.readouterr().out

    assert ended.value.code == 0
    assert [s.flag for s in TABLE if s.flag not in shown] == []
    assert "default 640" in shown


def test_the_sample_file_is_a_node_that_starts_and_names_every_setting(tmp_path: Path):
    file = tmp_path / "node.toml"
    file.write_text(sample())

    assert load(["--config", str(file)], {}).node_id == "n1"
    assert [s.key for s in TABLE if f"{s.key} = " not in sample()] == []


def test_the_samples_examples_fit_together(tmp_path: Path):
    examples = tuple(f"# {setting.key} = " for setting in TABLE if setting.example)
    file = tmp_path / "node.toml"
    file.write_text(
        "\n".join(line.removeprefix("# ") if line.startswith(examples) else line for line in sample().splitlines())
    )

    assert load(["--config", str(file)], {}).tls_key == "/etc/rollcall/tls/key.pem"


def test_the_samples_comments_are_the_defaults(tmp_path: Path):
    """Every commented line with a value can be uncommented without changing anything."""
    examples = tuple(f"# {setting.key} = " for setting in TABLE if setting.example)
    lines = [
        line.removeprefix("# ") if " = " in line and "[" not in line and not line.startswith(examples) else line
        for line in sample().splitlines()
    ]
    file = tmp_path / "node.toml"
    file.write_text("\n".join(lines))

    assert load(["--config", str(file)], {}) == build(node_id="n1", data_dir=Path("/var/lib/rollcall"))


def test_the_readme_holds_the_table():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- settings -->\n", "<!-- /settings -->"

    assert begin in readme, f"README.md needs {begin.strip()} and {end} round the settings table"
    shown = readme.partition(begin)[2].partition(end)[0]
    assert shown.strip() == markdown().strip(), "renew it with: python -m rollcall.node.settings table"


def test_names_of_a_node_are_a_list_or_a_text(tmp_path: Path):
    file = tmp_path / "node.toml"
    file.write_text('[http]\nhosts = ["a.example.com", "b"]\n')

    assert loaded("--config", str(file)).hosts == ("a.example.com", "b")
    assert loaded("--hosts", "a.example.com, b.").hosts == ("a.example.com", "b.")
    for wrong in ("http://a", "a:80", "*", "a b"):
        with pytest.raises(Invalid, match=r"hosts: expected names such as registry\.example\.com, without a port"):
            loaded("--hosts", wrong)
    file.write_text("[http]\nhosts = [1]\n")
    with pytest.raises(Invalid, match=r"hosts in \[http\]"):
        loaded("--config", str(file))
