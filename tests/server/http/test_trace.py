"""A Trace writes the log line of a request, whether it was admitted or not."""

from octavo.server.http.trace import Trace


def test_a_request_that_was_not_admitted() -> None:
    trace = Trace("id-1", "POST", "/v1/completions", started=10.0, status=400)
    assert trace.line(now=10.5) == "id-1 POST /v1/completions 400 total=0.500s"


def test_one_that_was_admitted_and_got_no_token() -> None:
    trace = Trace("id-1", "POST", "/v1/completions", started=10.0, status=499)
    trace.admit("cmpl-1", "org/tiny")
    trace.admitted = 10.25
    trace.prompt_tokens, trace.finish_reasons = 7, ["abort", "stop"]
    assert trace.line(now=11.0) == (
        "id-1 POST /v1/completions 499 cmpl-1 model=org/tiny prompt=7 cached=0 completion=0 "
        "admitted=0.250s finish=abort,stop total=1.000s"
    )


def test_it_travels_with_the_scope() -> None:
    scope: dict[str, object] = {}
    trace = Trace("id-1", "GET", "/")
    trace.attach(scope)
    assert Trace.of(scope) is trace
