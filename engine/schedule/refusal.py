"""Says what a model cannot do for a request that concerns its experts."""

from octavo.engine.api import ExpertShape, SamplingParams


def why_experts_are_refused(params: SamplingParams, shape: ExpertShape | None) -> str | None:
    """Returns the reason as a sentence for the client; returns None if the request can run. A dense model has no shape.

    The API process has seen the request before, so the sentences are for whoever asks the engine itself.
    """
    if params.routes_from is None and params.experts is None:
        return None
    if shape is None:
        return "The model is dense, so that it chooses no experts: ask for nothing that concerns them."
    if params.routes_from is not None and params.routes_from < 0:
        return "The first position whose experts are told must be at least 0."
    return None if params.experts is None else shape.why_refused(params.experts)
