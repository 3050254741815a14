"""A Service is what all endpoints share; create_app makes one and passes it to each of them."""

from dataclasses import dataclass

from octavo.engine.client import EngineClient
from octavo.server.config import ServerConfig
from octavo.server.generation.parameters import ParameterCheck
from octavo.server.http.errors import ModelNotFound
from octavo.server.http.metrics import Metrics
from octavo.server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Service:
    client: EngineClient
    tokenizer: Tokenizer
    config: ServerConfig
    metrics: Metrics
    check_extra: ParameterCheck

    def require_model(self, name: str) -> None:
        """Raises ModelNotFound for a model that is not served here."""
        served = self.config.served_model_names
        if name not in served:
            names = ", ".join(f"'{each}'" for each in served)
            raise ModelNotFound(
                "The model '{name}' is not served here; {names} is.", "model", name=name[:100], names=names
            )
