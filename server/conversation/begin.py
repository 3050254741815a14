"""From a chat request to an admitted job: what every endpoint does that answers conversations."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jinja2
from starlette.requests import Request as HttpRequest

from octavo.engine.api import Ready, SamplingParams
from octavo.server.conversation.call_grammar import call_constraints
from octavo.server.conversation.calls import CallParser, format_of, new_id
from octavo.server.conversation.messages import turns_of
from octavo.server.conversation.parts import AnswerParser, PartParser, PlainText
from octavo.server.conversation.request import ChatRequest
from octavo.server.conversation.tools import ToolUse
from octavo.server.generation.admission import Task, admit, check_before_encoding
from octavo.server.generation.job import Job
from octavo.server.generation.sampling import output_limit, sampling_params, truncated
from octavo.server.generation.service import Service
from octavo.server.http.errors import InvalidRequest
from octavo.server.http.health import require_ready
from octavo.server.text.template import ChatTemplate, Rendering


async def begin(service: Service, http: HttpRequest, request: ChatRequest, prefix: str) -> tuple[Job, AnswerParser]:
    """The job, whose id starts with `prefix`, and what reads its answer. Raises ApiError, and nothing is queued."""
    ready = require_ready(service.client)
    check_before_encoding(service, ready, 1, request)
    task, parser = await asyncio.to_thread(_prepared, service, request, ready)
    return await admit(service, http, request, [task], prefix), AnswerParser(parser)


def rendered(service: Service, request: ChatRequest) -> str:
    """The prompt as text: what the model is given. Raises InvalidRequest."""
    return _rendered(_template(service, request), request, request.tool_use())


def _rendered(template: ChatTemplate, request: ChatRequest, use: ToolUse | None) -> str:
    rendering = Rendering(
        tools=[] if use is None else [tool.described() for tool in use.described],
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final=request.continue_final_message is True,
        variables=request.chat_template_kwargs or {},
    )
    return template.render(turns_of(request.messages), rendering)


def _template(service: Service, request: ChatRequest) -> ChatTemplate:
    """The checkpoint's own, or the client's where clients are trusted with that."""
    own = service.tokenizer.template
    if not request.chat_template:
        if own is None:
            template = (
                "The model has no chat template; use /v1/completions, or add chat_template.jinja to the checkpoint."
            )
            raise InvalidRequest(template, "messages")
        return own.for_tools if _concerns_tools(request) else own
    if not service.config.trust_request_chat_template:
        template = "{param} is refused by this server; start it with --trust-request-chat-template to allow it."
        raise InvalidRequest(template, "chat_template")
    try:
        return ChatTemplate(request.chat_template) if own is None else own.replaced(request.chat_template)
    except RecursionError as error:
        raise InvalidRequest("{param} is nested too deeply; simplify it.", "chat_template") from error
    except jinja2.TemplateSyntaxError as error:
        template = "{param} is broken at line {line}: {reason}."
        raise InvalidRequest(template, "chat_template", line=error.lineno, reason=error.message) from error


def _concerns_tools(request: ChatRequest) -> bool:
    calls = any(message.role == "tool" or message.tool_calls for message in request.messages)
    return calls or request.tool_use() is not None


def _prepared(service: Service, request: ChatRequest, ready: Ready) -> tuple[Task, Callable[[], PartParser]]:
    """Runs in a thread: rendering and encoding a long conversation take longer than the event loop may wait."""
    template, use = _template(service, request), request.tool_use()
    text = _rendered(template, request, use)
    prompt = service.tokenizer.encode(text, add_special_tokens=False)  # the template brings its BOS
    if not prompt:
        raise InvalidRequest("{param} render to an empty prompt.", "messages")
    prompt = truncated(prompt, request, _wanted(request), ready.max_model_len)
    params = _params(request, ready, len(prompt))
    if use is None:
        return Task(prompt, params), PlainText
    format = format_of(template)
    tokens = service.tokenizer.added_ids(format.tokens())
    if constraints := call_constraints(request, use, format, tokens):
        params = replace(params, grammar=constraints[-1].grammar)
    names = frozenset(tool.name for tool in use.callable)
    parser = partial(CallParser, format, names, new_id(template.capabilities.short_ids_only), use.parallel)
    return Task(prompt, params, frozenset(tokens.values()), constraints), parser


def _params(request: ChatRequest, ready: Ready, prompt_tokens: int) -> SamplingParams:
    limit = output_limit(prompt_tokens, _wanted(request), ready.max_model_len, "messages")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return sampling_params(request, ready, limit, logprobs)


def _wanted(request: ChatRequest) -> int | None:
    return request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
