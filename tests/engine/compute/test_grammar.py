"""Tests that outputs follow their grammars, that bad grammars are refused, and that others notice nothing."""

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from threading import Event
from typing import Any

import jsonschema
import numpy as np
import pytest

from octavo.engine.api import FinishReason, Grammar, Output, Request, SamplingParams
from octavo.engine.compute import follower
from octavo.engine.compute.compiler import LIMITS, STUCK, Compiler, GrammarError
from octavo.engine.compute.grammar import KEPT
from octavo.engine.compute.runner import ModelRunner
from octavo.engine.config import EngineConfig
from octavo.engine.engine import Engine
from octavo.engine.startup.build import build
from tests.engine.compute.random_schemas import random_schema
from tests.engine.fakes import Collector, run
from tests.server.vocab import BYTES, EOS, byte_level
from tests.tiny import write_tiny_checkpoint

TOKENS, PADDED = 259, 270  # the number of ids in the tokenizer and in the embedding
PROMPT = tuple(range(10, 30))
# A model of random weights would seldom close what it opens, so these tokens are favoured.
CLOSING = tuple((BYTES + byte, 4.0) for byte in b'"}],:')
STOP, ERROR, LENGTH = FinishReason.STOP, FinishReason.ERROR, FinishReason.LENGTH


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(directory, vocab_size=PADDED, max_position_embeddings=4096)
    byte_level().backend.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def compiler(directory) -> Compiler:
    return Compiler(directory / "tokenizer.json", (EOS,))


@pytest.fixture(scope="module")
def core(directory) -> Engine:
    return start(directory)


def start(directory: Path, **changes: Any) -> Engine:
    config = {"threads": 1, "kv_cache_memory": 2**23, "max_num_batched_tokens": 512, "device": "cpu"} | changes
    core, _ = build(
        EngineConfig(str(directory), dtype="float32", **({"sampled_vocab": TOKENS} | config)), lambda progress: None
    )
    return core


def request(name: str, grammar: Grammar | None, **params: Any) -> Request:
    defaults = {"max_tokens": 600, "seed": 5, "stop_token_ids": (EOS,), "logit_bias": CLOSING, "grammar": grammar}
    return Request(name, PROMPT, SamplingParams(**(defaults | params)))


def serve(core: Engine, *requests: Request) -> Collector:
    """Serves all requests to their end, and checks that nothing is kept of them."""
    collector = Collector()
    for each in requests:
        collector.take(core.add(each))
    run(core, collector)
    assert collector.ended.keys() == {each.id for each in requests}
    assert core.runner.grammars._states == {} and core.runner.grammars.compiling == 0
    return collector


def text(tokens: tuple[int, ...]) -> str:
    return bytes(token - BYTES for token in tokens if token != EOS).decode()


def answer(core: Engine, grammar: Grammar, **params: Any) -> str:
    collector = serve(core, request("a", grammar, **params))
    assert collector.reason("a") is STOP, collector.ended["a"]
    return text(collector.tokens["a"])


def schema(value: Any) -> Grammar:
    return Grammar("json", json.dumps(value))


def test_a_hundred_random_schemas(core):
    random = Random(11)
    schemas = {f"r{index}": random_schema(random) for index in range(100)}
    requests = [request(name, schema(each), seed=index) for index, (name, each) in enumerate(schemas.items())]
    collector = serve(core, *requests)
    stopped = [name for name in schemas if collector.reason(name) is STOP]
    for name in stopped:
        jsonschema.validate(json.loads(text(collector.tokens[name])), schemas[name])
    assert not any(collector.reason(name) is ERROR for name in schemas)
    assert len(stopped) >= 90


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_any_object(core, temperature):
    for seed in range(5):
        assert isinstance(
            json.loads(answer(core, schema({"type": "object"}), seed=seed, temperature=temperature)), dict
        )


@pytest.mark.parametrize("pattern", ["[0-9]{3}-[a-f]+x", "^(yes|no)$", "a?b", "é+!", r"\d{2}\.\d"])
def test_a_regular_expression_matches_all_of_the_output(core, pattern):
    for seed in range(4):
        assert re.fullmatch(pattern, answer(core, Grammar("regex", pattern), seed=seed))


@pytest.mark.parametrize("choices", [["red", "green", "blue"], ["a", "ab"], ['qu"o\\te\n', "é😀"], ["", "x"]])
def test_the_output_is_one_of_the_choices(core, choices):
    found = {answer(core, Grammar("choice", json.dumps(choices)), seed=seed) for seed in range(8)}
    assert found <= set(choices)
    assert len(found) > 1


LARK = 'start: sum\nsum: NUMBER | "(" sum "+" sum ")"\nNUMBER: /[0-9]/'
GBNF = 'root ::= sum\nsum ::= [0-9] | "(" sum "+" sum ")"'


@pytest.mark.parametrize("grammar", [LARK, GBNF])
def test_a_context_free_grammar(core, grammar):
    for seed in range(5):
        found = answer(core, Grammar("grammar", grammar), seed=seed, logit_bias=())
        while found != (reduced := re.sub(r"\([0-9]\+[0-9]\)", "0", found)):
            found = reduced
        assert re.fullmatch("[0-9]", found)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (schema({"type": "array", "uniqueItems": True, "contains": {}}), '"contains", "uniqueItems"'),
        (schema({"properties": {"a": {"not": {"type": "null"}}}}), 'not supported: "not"'),
        (schema({"if": {}, "then": {}, "x-guidance": {"lenient": True}}), '"if", "then"'),
        (Grammar("grammar", 'start: %json {"not": {}, "x-guidance": {"lenient": true}}'), 'not supported: "not"'),
        (schema({"oneOf": [{"type": "string"}, {"maxLength": 3}]}), "'oneOf' is supported only where"),
        (schema({"$ref": "http://example.com/schema.json"}), "cannot be used"),
        (schema({"type": "integer", "minimum": 5, "maximum": 3}), "minimum"),
        (schema({"$ref": "#"}), "No output can follow"),
        (schema({"enum": []}), "cannot be used"),
        (Grammar("json", "{"), "cannot be used"),
        (Grammar("json", "5"), "cannot be used"),
        (Grammar("regex", "("), "unclosed group"),
        (Grammar("regex", "(?=a)b"), "look-ahead"),
        (Grammar("choice", '["\\ud800"]'), "cannot be used"),
        (Grammar("grammar", "start: <[99999]>"), "Token range end too large"),
        (Grammar("grammar", 'start: "a" | missing'), "missing"),
        (Grammar("grammar", 'root ::= "a" | missing'), "missing"),
        (Grammar("grammar", "start: A\nA: " + " & ".join(f"/.*{n}.*/" for n in range(60))), "simplify it"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(compiler, core, grammar, words):
    with pytest.raises(GrammarError) as refusal:
        compiler.compile(grammar)
    assert words in str(refusal.value)
    ended = serve(core, request("a", grammar)).ended["a"]
    assert (ended.finish_reason, ended.error) == (ERROR, str(refusal.value))


def test_a_tokenizer_that_cannot_be_read(tmp_path):
    with pytest.raises(GrammarError, match="does not allow for grammars"):
        Compiler(tmp_path / "tokenizer.json", (EOS,))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(GrammarError, match="does not allow for grammars"):
        Compiler(tmp_path / "tokenizer.json", (EOS,))


def test_others_are_served_as_if_nobody_had_a_grammar(core):
    free = [request(f"free {seed}", None, seed=seed, max_tokens=40, logit_bias=()) for seed in range(3)]
    bound = [request(f"bound {seed}", schema({"type": "object"}), seed=seed) for seed in range(3)]
    alone, mixed = serve(core, *free), serve(core, *free, *bound)
    assert all(mixed.tokens[each.id] == alone.tokens[each.id] for each in free)


def test_preempted_sequences_continue_where_they_were(directory, core):
    random = Random(3)
    requests = [request(f"r{n}", schema(random_schema(random)), seed=n, max_tokens=80) for n in range(12)]
    narrow = start(directory, kv_cache_memory=2 * 2 * 2 * 8 * 4 * 16 * 14, max_num_batched_tokens=23)
    calm, pressed = serve(core, *requests), serve(narrow, *requests)
    assert narrow.scheduler.stats().preemptions > 0 == core.scheduler.stats().preemptions
    assert pressed.tokens == calm.tokens


def test_choices_stand_in_the_grammar_each_for_itself(core):
    """The choices share one compiled grammar, and each has a state of its own."""
    grammar = Grammar("choice", '["red", "green", "blue", "violet"]')
    collector = serve(core, *(request(f"c{choice}", grammar, choice=choice, logit_bias=()) for choice in range(12)))
    found = {text(tokens) for tokens in collector.tokens.values()}
    assert found <= {"red", "green", "blue", "violet"} and len(found) > 1


@pytest.mark.parametrize("params", [{"min_tokens": 20}, {"stop_token_ids": ()}, {"min_tokens": 20, "temperature": 0.0}])
def test_an_output_ends_where_its_grammar_does(core, params):
    """Neither min_tokens nor ignore_eos makes a model go on when there is nothing left to say."""
    for grammar in (Grammar("choice", '["ab", "abc"]'), Grammar("regex", "(ab){1,2}")):
        assert re.fullmatch("abc?|abab", answer(core, grammar, logit_bias=(), **params))


def test_min_tokens_keeps_an_output_going_while_its_grammar_can(core):
    collector = serve(core, request("a", Grammar("regex", "[ab]*"), min_tokens=20, logit_bias=((EOS, 50.0),)))
    assert len(collector.tokens["a"]) >= 20


def test_an_output_may_be_cut_short(core):
    collector = serve(core, request("a", Grammar("regex", "a{500}"), max_tokens=7))
    assert (text(collector.tokens["a"]), collector.reason("a")) == ("aaaaaaa", FinishReason.LENGTH)
    collector = serve(core, request("a", Grammar("regex", "a+b+"), stop_token_ids=(EOS, BYTES + ord("b"))))
    assert re.fullmatch("a+b", text(collector.tokens["a"]))


def test_logprobs_are_the_models_own(core):
    """The grammar makes the model take unlikely tokens, and their log-probabilities say so."""
    collector, outputs = Collector(), []
    core.add(request("a", Grammar("regex", "[xyz]{8}"), logprobs=3, temperature=0.0, logit_bias=()))
    while core.has_work():
        outputs += core.step().outputs
    found = [each for output in outputs for each in output.logprobs]
    for output in outputs:
        collector.take(output)
    assert re.fullmatch("[xyz]{8}", text(collector.tokens["a"]))
    assert any(token not in {BYTES + byte for byte in b"xyz"} for each in found for token, _ in each.top)
    assert any(each.logprob < each.top[0][1] for each in found)


def test_padding_of_the_vocabulary_is_never_allowed(compiler, core):
    matcher = compiler.compile(Grammar("regex", "(?s:.*)"))
    allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    assert allowed[BYTES + ord("a")] and not allowed[TOKENS:].any()
    bias = tuple((token, 100.0) for token in range(TOKENS, PADDED))
    collector = serve(core, request("a", Grammar("regex", "(?s:.){30}"), logit_bias=bias))
    assert max(collector.tokens["a"]) < TOKENS


def test_beside_outputs_that_follow_grammars_others_overlap_and_nothing_changes(directory, core):
    overlapped, served = start(directory), []
    assert isinstance(overlapped.runner, ModelRunner)
    overlapped.runner = replace(overlapped.runner, overlaps=True)
    for each in (core, overlapped):
        bound = [request(f"bound {n}", Grammar("regex", "[ab]{1,30}c"), seed=n, max_tokens=9 + n) for n in range(4)]
        free = [request(f"free {n}", None, seed=n, max_tokens=1 + 12 * n, logprobs=n) for n in range(5)]
        collector = serve(each, *bound, *free)
        served.append((collector.tokens, {name: collector.reason(name) for name in collector.ended}))
    assert served[0] == served[1]


def test_a_grammar_that_no_token_continues_ends_its_own_output_alone(directory):
    core = start(directory, sampled_vocab=BYTES + ord("a"))  # as if the letters were padding
    bad, good = Grammar("regex", "[0-9]{3}a+"), Grammar("regex", "[0-9]{5}")
    collector = serve(core, request("bad", bad), request("good", good))
    assert (collector.reason("bad"), collector.reason("good")) == (LENGTH, STOP)
    assert re.fullmatch("[0-9]{3}", text(collector.tokens["bad"]))
    assert collector.ended["bad"].error == STUCK


@pytest.mark.parametrize("grammar", ["a+", "[0-9]{3}a+"])
def test_a_grammar_that_no_token_can_continue_is_known_by_trying_it(directory, grammar):
    compiler = Compiler(directory / "tokenizer.json", (EOS,), BYTES + ord("a"))
    with pytest.raises(GrammarError, match="No token of the model continues"):
        compiler.try_out(Grammar("regex", grammar))


def test_a_grammar_that_becomes_too_ambiguous_ends_its_own_output_alone(core):
    """The output keeps what it has, and says why it ends."""
    ambiguous = Grammar("grammar", "start: start start | /[a-z]/")
    bad = request("bad", ambiguous, logit_bias=((EOS, -100.0),))
    collector = serve(core, bad, request("good", Grammar("regex", "[0-9]{50}")))
    assert (collector.reason("bad"), collector.reason("good")) == (LENGTH, STOP)
    assert "simplify it" in str(collector.ended["bad"].error)
    assert re.fullmatch("[a-z]+", text(collector.tokens["bad"]))


def test_a_grammar_whose_masks_take_long_ends_its_own_output_alone(core, monkeypatch):
    monkeypatch.setattr(follower, "ALLOWANCE", 0.0)
    monkeypatch.setattr(follower, "SECONDS_PER_TOKEN", -1.0)  # as if each mask took a second
    bad = serve(core, request("bad", Grammar("regex", "[0-9]{50}"))).ended["bad"]
    assert (bad.finish_reason, bad.error) == (LENGTH, follower.TOO_SLOW)


@pytest.mark.parametrize("grammar", ["(?:a|aa)+{500}", "(?:a|aa){500}", "(a?){300}a{300}"])
def test_limits_that_the_first_tokens_reach_are_known_by_trying(compiler, grammar):
    with pytest.raises(GrammarError, match="too large or too ambiguous"):
        compiler.try_out(Grammar("regex", grammar))


@pytest.mark.parametrize("count", [999, 1000, 3000])
def test_thousands_of_choices(compiler, core, count):
    choices = [f"choice number {n}" for n in range(count)]
    texts = [json.dumps(each) for each in choices]
    for grammar in (
        Grammar("choice", json.dumps(choices)),
        Grammar("grammar", "start: CHOICE\nCHOICE: " + " | ".join(texts)),
        Grammar("grammar", "start: " + " | ".join(texts)),
        Grammar("grammar", "root ::= " + " | ".join(texts)),
    ):
        compiler.try_out(grammar)
        assert answer(core, grammar, logit_bias=()) in choices


def test_an_output_that_exhausts_the_lexer_does_not_end_those_that_share_it(compiler, monkeypatch):
    """The copies of a matcher have one lexer. It is made anew for those that have not exhausted it themselves."""
    monkeypatch.setitem(LIMITS, "max_lexer_states", 2000)
    compiled = follower.Compiled(lambda: compiler.compile(Grammar("regex", "(.*a.{5,60}b.*c.{3,70}d){4,90}")))
    ids = [BYTES + byte for byte in b"abcd"]
    first, other = follower.Follower(compiled), follower.Follower(compiled)
    for id in ids:
        assert not other.take(id)
    exhausted, random = compiled.matcher, Random(0)
    with pytest.raises(GrammarError):
        while True:
            first.take(random.choice(ids))
            first.mask()
    other.mask()
    assert not other.take(ids[0])
    assert compiled.matcher is not exhausted
    follower.Follower(compiled).mask()


def test_callers_take_turns_with_the_engines_compilers(directory, monkeypatch):
    """A caller with many slow grammars has one of two threads, so another's need not wait."""
    core, may_end = start(directory), Event()
    compile = core.runner.grammars._compile

    def compile_slowly(grammar: Grammar) -> Any:
        if grammar.text.startswith("slow"):
            may_end.wait()
        return compile(grammar)

    monkeypatch.setattr(core.runner.grammars, "_compile", compile_slowly)
    for n in range(5):
        core.add(replace(request(f"slow {n}", Grammar("regex", f"slow{n}")), caller="one"))
    core.add(replace(request("quick", Grammar("regex", "[0-9]{3}")), caller="other"))
    collector = Collector()
    while "quick" not in collector.ended:
        for output in core.step().outputs:
            collector.take(output)
    assert collector.ended.keys() == {"quick"}
    may_end.set()
    run(core, collector)
    assert {collector.reason(f"slow {n}") for n in range(5)} == {STOP}


def test_nobody_waits_for_a_grammar_that_is_being_compiled(directory, monkeypatch):
    core, may_end = start(directory), Event()
    compile = core.runner.grammars._compile

    def compile_slowly(grammar: Grammar) -> Any:
        may_end.wait()
        return compile(grammar)

    monkeypatch.setattr(core.runner.grammars, "_compile", compile_slowly)
    collector = Collector()
    core.add(request("bound", Grammar("regex", "[0-9]{3}")))
    core.add(request("free", None, max_tokens=10))
    while "free" not in collector.ended:
        step = core.step()
        assert step.stats.waiting == 1
        for output in step.outputs:
            collector.take(output)
    assert core.has_work() and core.step().outputs == ()
    may_end.set()
    run(core, collector)
    assert re.fullmatch("[0-9]{3}", text(collector.tokens["bound"]))


def test_compiled_grammars_are_kept_for_the_next_request_but_not_for_ever(core):
    for n in (*range(KEPT + 3), 0):
        assert answer(core, Grammar("regex", f"{n}")) == f"{n}"
    assert len(core.runner.grammars._matchers) == KEPT
    assert Grammar("regex", "1") not in core.runner.grammars._matchers


def test_aborted_requests_leave_nothing(core):
    grammar = Grammar("regex", "z{400}")
    core.add(request("waiting", grammar))
    assert core.has_work()
    assert core.abort("waiting") == Output("waiting", finish_reason=FinishReason.ABORT)
    core.add(request("running", grammar))
    while not core.scheduler.running:
        core.step()
    assert core.abort("running") is not None
    assert core.runner.grammars._states == {} and not core.has_work()
    assert core.abort("running") is None


def test_a_request_that_cannot_run_is_refused_once_its_grammar_is_there(core):
    ended = serve(core, Request("a", (), SamplingParams(5, grammar=schema({})))).ended["a"]
    assert "prompt is empty" in str(ended.error)
