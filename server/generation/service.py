"""A Service is what all endpoints share; create_app makes one and passes it to each of them."""

from dataclasses import dataclass

from octavo.engine.client import EngineClient
from octavo.server.experts.record import ExpertRecord
from octavo.server.generation.intake import Intake
from octavo.server.generation.places import Places
from octavo.server.generation.preparer import Preparer
from octavo.server.generation.texts import Texts
from octavo.server.http.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Service(Texts):
    client: EngineClient
    metrics: Metrics
    intake: Intake
    preparer: Preparer
    places: Places
    experts: ExpertRecord
