"""ServerConfig holds every choice that the HTTP side is started with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Holds times in seconds and sizes in bytes."""

    served_model_names: tuple[str, ...]  # at least one; each serves the same model
    host: str = "127.0.0.1"
    port: int = 8000
    address_file: str = ""  # A file into which the server writes its URL, once it listens; "": none.
    root_path: str = ""  # the prefix of URLs behind a reverse proxy, such as "/octavo"
    api_keys: tuple[str, ...] = ()  # empty: no authentication
    share_prefix_cache: bool = False  # requests of different keys share cached prefixes
    allowed_origins: tuple[str, ...] = ()  # web pages that may call the server beside its own (CORS); "*": all
    timeout_header: float = 30.0  # a request's head must be complete after so long
    timeout_body: float = 30.0  # a body may stop coming for so long
    timeout_send: float = 60.0  # a client may stop reading its answer for so long
    timeout_keep_alive: float = 75.0  # a connection may be idle between requests for so long
    limit_concurrency: int | None = None  # connections at once; None: as many as there are descriptors for
    h11_max_header_count: int = 256  # header fields of a request
    h11_max_incomplete_event_size: int = 64 * 1024  # bytes of a request's head
    drain_timeout: float = 20.0  # open requests may run on for so long after SIGTERM
    keep_alive: float = 15.0  # a comment is sent after so long without an event
    max_body_bytes: int = 8 * 1024 * 1024  # encoding a MB takes about a second, and 8 MiB hold a million tokens
    max_num_choices: int = 128  # the largest n
    log_text: bool = False  # prompts and outputs may be logged
    parse_special_tokens: bool = False  # the text of a special token in a conversation becomes that token
    trust_request_chat_template: bool = False  # requests may bring templates of their own
    allow_expert_control: bool = False  # requests may keep routers from choosing some experts
    expert_metrics: bool = False  # /metrics has counters of every expert

    @property
    def served_model_name(self) -> str:
        """Returns the first of the names, for metrics and for clients that name none."""
        return self.served_model_names[0]
