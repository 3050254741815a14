"""Texts is what bodies are read with, in a thread of the API process or in the process for large bodies."""

from dataclasses import dataclass, field

from octavo.server.config import ServerConfig
from octavo.server.generation.parameters import ParameterCheck
from octavo.server.http.errors import ModelNotFound
from octavo.server.text.template_process import TemplateProcess
from octavo.server.text.tokenizer import Tokenizer


class Elsewhere(Exception):
    """Says that a body brings a template, and must be read where Texts have the process for such templates."""


@dataclass(frozen=True, slots=True)
class Texts:
    tokenizer: Tokenizer
    config: ServerConfig
    check_extra: ParameterCheck
    template_process: TemplateProcess | None = field(default=None, kw_only=True)  # for templates of clients

    def require_model(self, name: str) -> None:
        """Raises ModelNotFound for a model that is not served here."""
        served = self.config.served_model_names
        if name not in served:
            names = ", ".join(f"'{each}'" for each in served)
            raise ModelNotFound(
                "The model '{name}' is not served here; {names} is.", "model", name=name[:100], names=names
            )
