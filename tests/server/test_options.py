"""Flags and environment variables set fields of the configs; a field that neither sets has its default."""

from argparse import ArgumentParser, Namespace

import pytest

from octavo.engine.config import EngineConfig
from octavo.server.config import ServerConfig
from octavo.server.environment import from_environment
from octavo.server.http.errors import StartupError
from octavo.server.options import OPTIONS, add_to, configure


def parse(*arguments: str) -> Namespace:
    parser = ArgumentParser(exit_on_error=False)
    add_to(parser)
    return parser.parse_args(arguments)


def configs(arguments: tuple[str, ...] = (), **environment: str) -> tuple[EngineConfig, ServerConfig]:
    parsed = vars(parse(*arguments))
    given = from_environment(environment, parsed) | parsed
    return configure(given, "/models/tiny", "tiny", 259)


def test_without_flags_the_defaults_hold() -> None:
    assert configs() == (EngineConfig(model="/models/tiny", sampled_vocab=259), ServerConfig(("tiny",)))


def test_flags_reach_their_fields() -> None:
    engine, server = configs(
        (
            "some/model",
            *("--dtype", "float32", "--quantization", "none", "--device", "cpu", "--threads", "3"),
            *("--host", "::1", "--port", "0", "--served-model-name", "name", "--drain-timeout", "1.5"),
            *("--api-key", "a", "--api-key", "b", "--allowed-origins", "https://a,https://b"),
            *("--max-model-len", "100", "--max-num-seqs", "7", "--max-num-batched-tokens", "64", "--max-waiting", "0"),
            *("--kv-cache-memory", "1.5GiB", "--gpu-memory-utilization", "0.5", "--block-size", "32"),
            *("--watchdog-timeout", "0", "--no-enable-prefix-caching", "--log-text"),
        )
    )
    assert engine == EngineConfig(
        model="/models/tiny",
        device="cpu",
        dtype="float32",
        quantization="none",
        threads=3,
        max_model_len=100,
        max_num_seqs=7,
        max_num_batched_tokens=64,
        max_waiting=0,
        watchdog_timeout=0,
        block_size=32,
        kv_cache_memory=3 * 2**29,
        gpu_memory_utilization=0.5,
        enable_prefix_caching=False,
        sampled_vocab=259,
    )
    assert server == ServerConfig(
        served_model_names=("name",),
        host="::1",
        port=0,
        api_keys=("a", "b"),
        allowed_origins=("https://a", "https://b"),
        drain_timeout=1.5,
        log_text=True,
    )


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        ("https://App.example/", ("https://app.example",)),  # as browsers write it
        ("http://127.0.0.1:3000, http://[::1]:3000", ("http://127.0.0.1:3000", "http://[::1]:3000")),
        (
            "https://a.example:443,http://[::1]:80,https://b.example:80",
            ("https://a.example", "http://[::1]", "https://b.example:80"),
        ),
        ("*", ("*",)),
        ("null", ("null",)),
        ("chrome-extension://abcdef", ("chrome-extension://abcdef",)),
    ],
)
def test_allowed_origins_are_what_browsers_send(given: str, origins: tuple[str, ...]) -> None:
    assert configs(("--allowed-origins", given))[1].allowed_origins == origins


@pytest.mark.parametrize("variable", ["OCTAVO_SERVED_MODEL_NAME", "OCTAVO_API_KEY", "OCTAVO_ALLOWED_ORIGINS"])
def test_bytes_that_are_no_text_are_refused(variable: str) -> None:
    with pytest.raises(StartupError, match="not UTF-8 text"):
        from_environment({variable: "a\udcff"})


@pytest.mark.parametrize("flag", ["timeout-header", "timeout-body", "timeout-send", "timeout-keep-alive"])
def test_a_limit_of_time_is_above_zero(flag: str) -> None:
    assert getattr(configs((f"--{flag}", "0.5"))[1], flag.replace("-", "_")) == 0.5
    with pytest.raises(StartupError, match="not a number above 0"):
        from_environment({f"OCTAVO_{flag.upper().replace('-', '_')}": "0"})


@pytest.mark.parametrize(
    "given", ["app.example", "https://a.example/path", "https://", "https://a b", "https://*.example"]
)
def test_what_no_browser_sends_is_no_origin(given: str) -> None:
    with pytest.raises(StartupError, match="is not an origin"):
        from_environment({"OCTAVO_ALLOWED_ORIGINS": given})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--served-model-name", "a", "b", "c"),
        ("--served-model-name", "a,b", "--port", "1", "--served-model-name", "c"),
        ("--served-model-name", "a, b", "c"),
    ],
)
def test_several_names(arguments: tuple[str, ...]) -> None:
    assert configs(("some/model", *arguments))[1].served_model_names == ("a", "b", "c")
    assert configs(OCTAVO_SERVED_MODEL_NAME="a,b,c")[1].served_model_names == ("a", "b", "c")


@pytest.mark.parametrize(("given", "path"), [("/octavo", "/octavo"), ("/a/b/", "/a/b"), ("/", "")])
def test_root_path(given: str, path: str) -> None:
    assert configs(("--root-path", given))[1].root_path == path


def test_the_environment_stands_in_for_flags() -> None:
    engine, server = configs(
        OCTAVO_MAX_MODEL_LEN="100",
        OCTAVO_API_KEY="a,b",
        OCTAVO_ENABLE_PREFIX_CACHING="false",
        OCTAVO_KV_CACHE_MEMORY="512MiB",
        OCTAVO_SERVED_MODEL_NAME="name",
        OCTAVO_PORT="",
        OCTAVO_IMAGE="not ours",
    )
    assert (engine.max_model_len, engine.enable_prefix_caching, engine.kv_cache_memory) == (100, False, 2**29)
    assert (server.api_keys, server.served_model_name, server.port) == (("a", "b"), "name", ServerConfig(("",)).port)
    assert from_environment({"OCTAVO_MODEL": "some/model"}) == {"model": "some/model"}


def test_the_command_line_wins() -> None:
    engine, server = configs(("--port", "1", "--api-key", "c"), OCTAVO_PORT="2", OCTAVO_API_KEY="a,b")
    assert (server.port, server.api_keys) == (1, ("c",))


def test_a_broken_variable_does_not_count_beside_its_flag() -> None:
    _, server = configs(("model", "--port", "1", "--no-log-text"), OCTAVO_PORT="many", OCTAVO_LOG_TEXT="perhaps")
    assert (server.port, server.log_text) == (1, False)


SERVICE = {
    "OCTAVO_PORT": "tcp://10.96.0.10:8000",
    "OCTAVO_SERVICE_HOST": "10.96.0.10",
    "OCTAVO_SERVICE_PORT": "8000",
    "OCTAVO_SERVICE_PORT_HTTP": "8000",
    "OCTAVO_PORT_8000_TCP": "tcp://10.96.0.10:8000",
    "OCTAVO_PORT_8000_TCP_PROTO": "tcp",
    "OCTAVO_PORT_8000_TCP_PORT": "8000",
    "OCTAVO_PORT_8000_TCP_ADDR": "10.96.0.10",
    "OCTAVO_WEB_SERVICE_HOST": "10.96.0.11",
    "OCTAVO_WEB_PORT": "tcp://[fd00::1]:80",
}


@pytest.mark.parametrize("port", [("--port", "1"), ()])
def test_variables_of_kubernetes_set_nothing(port: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    """Kubernetes sets them in every pod of a namespace with a service that is named octavo."""
    _, server = configs(port, **SERVICE)
    assert server.port == (1 if port else ServerConfig(("",)).port)
    told = [record.getMessage() for record in caplog.records]
    assert [line.split(",")[0] for line in told] == ([] if port else ["passing over OCTAVO_PORT=tcp://10.96.0.10:8000"])
    assert configs(OCTAVO_HOST="UDP://[fd00::1]:53")[1].host == "127.0.0.1"


def test_a_variable_that_sets_nothing_is_named(caplog: pytest.LogCaptureFixture) -> None:
    configs(OCTAVO_MAX_MODEL_LENGTH="4", OCTAVO_IMAGE="x", OCTAVOS="y")
    assert [record.getMessage() for record in caplog.records] == [
        "passing over the environment variable OCTAVO_IMAGE, which sets no flag",
        "passing over the environment variable OCTAVO_MAX_MODEL_LENGTH, which sets no flag; "
        "OCTAVO_MAX_MODEL_LEN is one that does",
    ]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("port", "65536"),
        ("port", "tcp://10.0.0.1"),
        ("threads", "0"),
        ("threads", "4097"),
        ("max-model-len", "-1"),
        ("max-num-seqs", "1.5"),
        ("dtype", "int3"),
        ("quantization", "int3"),
        ("device", "tpu"),
        ("kv-cache-memory", "4 gigs"),
        ("kv-cache-memory", "GiB"),
        ("gpu-memory-utilization", "0"),
        ("gpu-memory-utilization", "1.1"),
        ("drain-timeout", "-1"),
        ("drain-timeout", "nan"),
        ("drain-timeout", "inf"),
        ("enable-prefix-caching", "perhaps"),
        ("api-key", "a,,b"),
        ("served-model-name", "a,"),
        ("root-path", "octavo"),
        ("root-path", "/a b"),
        ("root-path", "//a"),
        ("threads", 5000 * "9"),
        ("max-num-seqs", "١٢"),
        ("kv-cache-memory", 400 * "9" + "T"),
    ],
)
def test_a_bad_value_is_reported_with_its_variable(flag: str, value: str) -> None:
    variable = f"OCTAVO_{flag.upper().replace('-', '_')}"
    with pytest.raises(StartupError, match=f"{variable} is wrong: "):
        from_environment({variable: value})


@pytest.mark.parametrize(
    ("text", "size"), [("123", 123), ("1KiB", 1024), ("2G", 2**31), ("0.5 GiB", 2**29), ("3mb", 3 * 2**20)]
)
def test_sizes(text: str, size: int) -> None:
    assert from_environment({"OCTAVO_KV_CACHE_MEMORY": text}) == {"kv_cache_memory": size}


def test_every_option_is_a_field_of_one_config() -> None:
    """The tokenizer of a GGUF file is none: it is copied beside the weights before there is a config."""
    fields = set(EngineConfig.__dataclass_fields__) | set(ServerConfig.__dataclass_fields__)
    assert {option.key for option in OPTIONS} <= fields | {"tokenizer"}
