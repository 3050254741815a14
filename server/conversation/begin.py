"""Turns a chat request into an admitted job. Every endpoint that answers conversations does it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request as HttpRequest

from octavo.engine.api import Ready, SamplingParams
from octavo.server.conversation.before_answer import before_answer
from octavo.server.conversation.call_grammar import CallGrammar, call_grammar
from octavo.server.conversation.calls import format_of
from octavo.server.conversation.messages import turns_of
from octavo.server.conversation.parts import AnswerParser, PartParser
from octavo.server.conversation.reading import Reading
from octavo.server.conversation.request import ChatRequest
from octavo.server.conversation.tools import ToolUse
from octavo.server.generation.admission import Task, admit, check_before_encoding
from octavo.server.generation.job import Job
from octavo.server.generation.sampling import encodable, kept, output_limit, sampling_params, too_long, truncated
from octavo.server.generation.service import Service
from octavo.server.generation.texts import Elsewhere, Texts
from octavo.server.http.errors import InvalidRequest
from octavo.server.text import harmony
from octavo.server.text.length import exceeds_by_bytes
from octavo.server.text.reasoning_tags import ReasoningTags
from octavo.server.text.template import ChatTemplate, Rendering
from octavo.server.text.template_process import ClientTemplate
from octavo.server.text.traced import Traced, plain
from octavo.server.text.turns import Turn

Template = ChatTemplate | ClientTemplate


@dataclass(frozen=True, slots=True)
class Conversation:
    """A Conversation is a chat request that is ready to be submitted. It can be sent from one process to another."""

    request: ChatRequest  # without its messages, which are in the prompt now
    task: Task
    parser: Callable[[], PartParser]  # makes a parser for each choice


async def begin(
    service: Service, http: HttpRequest, conversation: Conversation, prefix: str
) -> tuple[Job, AnswerParser]:
    """Returns the job, whose id starts with `prefix`, and the parser of its answer.

    Raises ApiError, and then nothing is queued.
    """
    job = await admit(service, http, conversation.request, [conversation.task], prefix)
    return job, AnswerParser(conversation.parser)


def prepared(texts: Texts, request: ChatRequest, ready: Ready) -> Conversation:
    """Renders and encodes a conversation, which takes longer than the event loop may wait.

    Raises ApiError, or Elsewhere if this is no place for a client's template.
    """
    check_before_encoding(texts, ready, 1, request)
    task, parser = _task(texts, request, ready)
    return Conversation(request.model_copy(update={"messages": []}), task, parser)


def rendered(texts: Texts, request: ChatRequest) -> str:
    """Returns the prompt as text, as the model is given it. Raises ApiError or Elsewhere.

    The text is Traced unless the server is told to parse special tokens in conversations: when it is encoded, those in
    what the client sent stay text.
    """
    return _told(texts, _rendered(_template(texts, request), request, turns_of(request.messages)))


def _told(texts: Texts, text: Traced) -> str:
    return plain(text) if texts.config.parse_special_tokens else text


def _rendered(template: Template, request: ChatRequest, turns: Sequence[Turn]) -> Traced:
    use = request.tool_use()
    rendering = Rendering(
        tools=[] if use is None else [tool.described() for tool in use.described],
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final=request.continue_final_message is True,
        variables=request.template_variables(harmony.EFFORTS if format_of(template).harmony else {}),
    )
    return template.render(turns, rendering)


def _template(texts: Texts, request: ChatRequest) -> Template:
    """Returns the client's template if the request has one, or else the checkpoint's. Raises ApiError or Elsewhere."""
    if request.chat_template:
        return _given_template(texts, request.chat_template)
    own = texts.tokenizer.template
    if own is None:
        raise InvalidRequest(
            "The model has no chat template; use /v1/completions, or add chat_template.jinja to the checkpoint.",
            "messages",
        )
    return own.for_tools if _concerns_tools(request, own.for_tools) else own


def _given_template(texts: Texts, source: str) -> ClientTemplate:
    """Returns the client's template, if the server is started to allow such. Raises ApiError or Elsewhere."""
    if not texts.config.trust_request_chat_template:
        raise InvalidRequest(
            "{param} is refused by this server; start it with --trust-request-chat-template to allow it.",
            "chat_template",
        )
    if texts.template_process is None:
        raise Elsewhere
    return ClientTemplate(texts.template_process, source)


def _concerns_tools(request: ChatRequest, template: ChatTemplate) -> bool:
    """Returns whether the conversation is one for this template for tools: it has tools to call, calls or results.

    Where the template tells the model to call in a form that is not read, the other one gets tools in the plain form.
    """
    known = template.capabilities
    if request.tool_use() is not None:
        return known.tools or not known.tool_calls
    return any(message.role == "tool" or message.tool_calls for message in request.messages)


def _task(texts: Texts, request: ChatRequest, ready: Ready) -> tuple[Task, Callable[[], PartParser]]:
    template, use, turns = _template(texts, request), request.tool_use(), turns_of(request.messages)
    if request.truncate_prompt_tokens is None and isinstance(template, ChatTemplate):
        _check_length(texts, template, turns, ready.max_model_len)
    text = _rendered(template, request, turns)
    prompt = _prompt(texts, request, _told(texts, text), ready)
    task = Task(prompt, _params(request, ready, len(prompt)))
    reading = _reading(template, request, use, text)
    markers = texts.tokenizer.added_ids(reading.markers())
    grammar = None if use is None else call_grammar(request, use, reading.format, markers)
    task = _with_calls(task, frozenset(markers.values()), grammar)
    if not request.ignore_eos:
        task = _with_ends(task, [markers[end] for end in reading.ends() if end in markers])
    return _with_before(task, before_answer(reading, markers, in_calls=grammar is not None)), reading.parser


def _reading(template: Template, request: ChatRequest, use: ToolUse | None, prompt: Traced) -> Reading:
    known, format = template.capabilities, format_of(template)
    tags = None if format.harmony else known.reasoning
    begun = tags is not None and (tags.opened_by(prompt) or _continues_reasoning(request, tags))
    tools = None if use is None else {tool.name: tool.schema_of_arguments for tool in use.callable}
    parallel = use is not None and use.parallel
    header = harmony.begun_by(prompt) if format.harmony else ""
    return Reading(format, tools, known.short_ids_only, parallel, tags, begun, header)


def _continues_reasoning(request: ChatRequest, tags: ReasoningTags) -> bool:
    """Returns whether the beginning of the answer, which the client gave, ends within reasoning."""
    return request.continue_final_message is True and tags.open_in(request.messages[-1].turn()["content"])


def _check_length(texts: Texts, template: ChatTemplate, turns: Sequence[Turn], max_model_len: int) -> None:
    """Raises ContextLengthExceeded if what users say is surely too long already: rendering it would take longer.

    A template may cut what the assistant said, such as its thoughts, and may strip what users say.
    """
    if not template.capabilities.complete:
        return
    said = "".join(turn["content"].strip() for turn in turns if turn["role"] == "user")
    if exceeds_by_bytes(texts.tokenizer, said, max_model_len):
        raise too_long(max_model_len, "messages")


def _prompt(texts: Texts, request: ChatRequest, text: str, ready: Ready) -> tuple[int, ...]:
    """Encodes the rendered text, and truncates it if the request says so."""
    wanted = None if request.cuts_max_tokens else _wanted(request)  # what can be cut takes no room from the prompt
    keep = kept(request, wanted, ready.max_model_len)
    text = encodable(texts.tokenizer, text, keep, ready.max_model_len, "messages")
    prompt = texts.tokenizer.encode_rendered(text, request.add_special_tokens is True)
    if not prompt:
        raise InvalidRequest("{param} render to an empty prompt.", "messages")
    return truncated(prompt, request, wanted, ready.max_model_len)


def _with_calls(task: Task, markers: frozenset[int], grammar: CallGrammar | None) -> Task:
    """Lets the text show the markers of calls, and binds the answer to the grammar if there is one."""
    if grammar is None:
        return replace(task, shown=markers)
    params = replace(task.params, grammar=grammar.answer.grammar)
    return replace(task, params=params, shown=markers, constraints=(*grammar.schemas, grammar.answer))


def _with_ends(task: Task, ids: Sequence[int]) -> Task:
    """Lets further tokens end the answer."""
    ended = tuple(dict.fromkeys((*task.params.stop_token_ids, *ids)))
    return replace(task, params=replace(task.params, stop_token_ids=ended))


def _with_before(task: Task, before: str) -> Task:
    """Lets the answer have before it what a grammar that binds it does not know of."""
    if task.params.grammar is None or not before:
        return task
    return replace(task, params=replace(task.params, grammar=replace(task.params.grammar, before=before)))


def _params(request: ChatRequest, ready: Ready, prompt_tokens: int) -> SamplingParams:
    wanted = _wanted(request)
    if wanted is not None and request.cuts_max_tokens:
        wanted = min(wanted, max(ready.max_model_len - prompt_tokens, 1))
    limit = output_limit(prompt_tokens, wanted, ready.max_model_len, "messages")
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return sampling_params(request, ready, limit, logprobs)


def _wanted(request: ChatRequest) -> int | None:
    """Returns the most tokens that the request allows; None when it does not say."""
    return request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
