"""ServerConfig: every choice the HTTP side is started with, frozen."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Times are in seconds, sizes in bytes."""

    served_model_names: tuple[str, ...]  # at least one; each serves the same model
    host: str = "127.0.0.1"
    port: int = 8000
    root_path: str = ""  # the prefix under which a reverse proxy shows the server, as "/octavo"
    api_keys: tuple[str, ...] = ()  # empty: no authentication
    allowed_origins: tuple[str, ...] = ("*",)  # CORS
    drain_timeout: float = 20.0  # how long open requests may run on after SIGTERM
    keep_alive: float = 15.0  # between SSE comment lines while nothing else is sent
    max_body_bytes: int = 8 * 1024 * 1024  # encoding takes about a second per MB; 8 hold a million tokens
    max_num_choices: int = 128  # n
    log_text: bool = False  # whether prompts and outputs may be logged

    @property
    def served_model_name(self) -> str:
        """The first of the names: in metrics, and wherever a client did not name one."""
        return self.served_model_names[0]

    trust_request_chat_template: bool = False  # whether requests may bring a template of their own
