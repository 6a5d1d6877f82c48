"""`thinkguard doctor --url` against small servers that each have one thing wrong."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from thinkguard import InputError, cli
from thinkguard.doctor import Check, Report
from thinkguard.doctor.client import RefusedError, ServerError, base_urls
from thinkguard.doctor.marks import telling
from thinkguard.doctor.serving import examine_server

NAMES = (
    "server", "opened", "closed", "answer", "separated", "content", "stream",
    "budget", "native-budget", "zero-budget", "misspelt-field", "little-room",
)  # fmt: skip
THINKING = tuple(f" step{i}" for i in range(60))
ANSWER = ("The", " answer", " is", " 579", ".")


class Refusal(Exception):
    """An HTTP error that a fake server answers."""


class Healthy:
    """vLLM with thinkguard and a reasoning parser, in front of a model that thinks for 60 tokens."""

    key = None
    path = "/v1"
    start, end, eos = ("<think>", "\n"), ("\n", "</think>", "\n\n"), ("<|im_end|>",)
    special = ("<|im_end|>",)
    prompt = "<|im_start|>assistant\n"
    thinking = THINKING
    answer = ANSWER
    field = "reasoning"
    told = ("logprobs", "prompt_text", "reasoning_tokens")
    extra = frozenset()  # request fields that are refused

    def __init__(self):
        self.bodies, self.keys = [], []

    def models(self):
        return {"object": "list", "data": [{"id": "tiny", "max_model_len": 4096}]}

    def version(self):
        return {"version": "0.32.0"}

    def policy(self, body):
        """The guard's policy of a request; a misspelt field is refused."""
        policy = json.loads(body.get("vllm_xargs", {}).get("thinkguard", "{}"))
        if "max_thinkin_tokens" in policy:
            raise Refusal(400, "unknown policy field 'max_thinkin_tokens': did you mean 'max_thinking_tokens'?")
        if "thinking_token_budget" in body:
            policy.setdefault("max_thinking_tokens", body["thinking_token_budget"])
        return policy

    def sample(self, body):
        """(tokens, finish_reason) of an answer."""
        policy = self.policy(body)
        around = len(self.start + self.end) + policy.get("reserve_answer_tokens", 1) + 1
        num = min(len(self.thinking), policy.get("max_thinking_tokens", 10**6), body["max_tokens"] - around)
        return self.cut([*self.start, *self.thinking[:num], *self.end, *self.answer, *self.eos], body)

    def cut(self, tokens, body):
        most = body["max_tokens"]
        return tokens[:most], "stop" if len(tokens) <= most else "length"

    def shown(self, tokens):
        """The tokens' text as the server shows it: special tokens dropped."""
        return "".join(token for token in tokens if token not in self.special)

    def fields(self, tokens, body):
        """(reasoning, content) of tokens."""
        head, found, tail = self.shown(tokens).partition("</think>")
        return head.removeprefix(self.start[0]), tail if found else ""

    def deltas(self, tokens, body):
        """(reasoning, content) of each streamed delta."""
        reasoning, content = self.fields(tokens, body)
        return [(reasoning[i : i + 7], "") for i in range(0, len(reasoning), 7)] + [
            ("", content[i : i + 3]) for i in range(0, len(content), 3)
        ]

    def message(self, reasoning, content):
        return {"content": content or None} | ({self.field: reasoning} if reasoning else {})

    def events(self, tokens, finish, body):
        yield {"choices": [{"delta": {"role": "assistant", "content": ""}}]} | self.rendered(body)
        deltas = self.deltas(tokens, body)
        for i, (reasoning, content) in enumerate(deltas):
            choice = {"delta": self.message(reasoning, content)}
            if i == len(deltas) - 1:
                choice |= {"finish_reason": finish} | self.spelled(tokens, body)
            yield {"choices": [choice]}
        yield {"choices": [], "usage": self.usage(tokens)}

    def spelled(self, tokens, body):
        if not body.get("logprobs") or "logprobs" not in self.told:
            return {}
        return {"logprobs": {"content": [{"token": token, "bytes": list(token.encode())} for token in tokens]}}

    def rendered(self, body):
        return {"prompt_text": self.prompt} if body.get("return_prompt_text") and "prompt_text" in self.told else {}

    def usage(self, tokens):
        details = {"completion_tokens_details": {"reasoning_tokens": sum(token in self.thinking for token in tokens)}}
        return {"completion_tokens": len(tokens)} | (details if "reasoning_tokens" in self.told else {})

    def chat(self, body):
        """The body of an answer, or a list of events."""
        self.bodies.append(body)
        for name in self.extra & set(body):
            raise Refusal(400, f"Unrecognized request argument supplied: {name}")
        tokens, finish = self.sample(body)
        if body.get("stream"):
            return list(self.events(tokens, finish, body))
        choice = {"message": self.message(*self.fields(tokens, body)), "finish_reason": finish}
        return {"choices": [choice | self.spelled(tokens, body)], "usage": self.usage(tokens)} | self.rendered(body)

    def tokenize(self, body):
        raise Refusal(404, "Not Found")

    def encoded(self, answer):
        return "application/json", json.dumps(answer).encode()

    def streamed(self, events):
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
        return "text/event-stream", f": a comment\n\n{text}data: [DONE]\n\n".encode()


class Unguarded(Healthy):
    """vLLM alone: it ignores what it does not know and knows no budget."""

    def policy(self, body):
        return {}

    def sample(self, body):
        return self.cut([*self.start, *self.thinking, *self.end, *self.answer, *self.eos], body)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.answer({f"{self.fake.path}/models": self.fake.models, "/version": self.fake.version}.get(self.path))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chats = {f"{self.fake.path}/chat/completions": self.fake.chat, "/tokenize": self.fake.tokenize}
        self.answer(chats.get(self.path), body)

    def answer(self, handle, *arguments):
        with suppress(ConnectionError):  # the client, or the fake itself, hung up
            self.answered(handle, *arguments)

    def answered(self, handle, *arguments):
        fake = self.fake
        fake.keys.append(self.headers.get("Authorization"))
        try:
            if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                raise Refusal(401, "Unauthorized")
            if handle is None:
                raise Refusal(404, "Not Found")
            answer = handle(*arguments)
            kind, data = fake.streamed(answer) if isinstance(answer, list) else fake.encoded(answer)
            status = 200
        except Refusal as error:
            status, message = error.args
            kind, data = "application/json", json.dumps({"error": {"message": message}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if 300 <= status < 400:
            self.send_header("Location", message)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(fake):
    """A fake server's URL."""
    handler = type("Bound", (Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{fake.path}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def examined(fake, **arguments):
    with serving(fake) as url:
        return examine_server(url, timeout=10, **arguments)


def found(report):
    """What is not ok."""
    assert tuple(check.name for check in report.checks) == NAMES
    return {check.name: check.status for check in report.checks if check.status != "ok"}


def told(report, name):
    check = next(check for check in report.checks if check.name == name)
    return f"{check.found} | {check.fix} | {' | '.join(check.evidence)}"


P, S, N, C = "problem", "skipped", "not applicable", "could not tell"
IGNORED = {"budget": P, "native-budget": P, "zero-budget": S, "misspelt-field": S, "little-room": P}


class WithoutParser(Healthy):
    def fields(self, tokens, body):
        return "", self.shown(tokens)


class WithoutParserAndStart(WithoutParser):
    start, prompt = (), "<|im_start|>assistant\n<think>\n"


class WithoutParserSpelled(WithoutParser):
    """Qwen2.5's vocabulary: markers are text in several tokens."""

    start, end = ("<", "think", ">\n"), ("\n</", "think", ">\n\n")

    def fields(self, tokens, body):
        return "", self.shown(tokens)


class SpecialDropped(Healthy):
    """Magistral without its parser: [THINK] is a special token, which decoding drops."""

    start, end, eos = ("[THINK]",), ("[/THINK]",), ("</s>",)
    special = ("[THINK]", "[/THINK]", "</s>")

    def fields(self, tokens, body):
        return "", self.shown(tokens)


class NeverCloses(Unguarded):
    thinking = tuple(f" step{i}" for i in range(5000))


class StopsInside(Unguarded):
    end, answer = (), ()

    def fields(self, tokens, body):
        return self.shown(tokens).removeprefix("<think>"), ""


class Leaks(Healthy):
    """A parser that stops at the first end, in front of a model that closes twice."""

    answer = ("The", " answer", " is", " 579", ".", "\n", "</think>", "\n\n", "579")


class LeaksHalf(Healthy):
    """A parser that is caught between the two halves of an end."""

    def fields(self, tokens, body):
        reasoning, content = super().fields(tokens, body)
        return reasoning + "</thi", "nk>" + content

    def spelled(self, tokens, body):
        return {}


class PhiLike(Healthy):
    """`<|end|>` ends a turn here, and means nothing."""

    answer = (*ANSWER, "<|end|>")


class SharedCharacters(Healthy):
    """Characters that two tokens share: neither of them spells one alone."""

    thinking = tuple(piece for i in range(20) for piece in (f" step{i}", "\ufffd", "\ufffd"))

    def shown(self, tokens):
        return super().shown(tokens).replace("\ufffd\ufffd", "→").replace("\ufffd", "")


class Harmony(Healthy):
    start, end = ("<|channel|>", "analysis", "<|message|>"), ("<|end|>",)
    answer = ("<|start|>", "assistant", "<|channel|>", "final", "<|message|>", *ANSWER)
    eos = special = ("<|return|>",)
    prompt = "<|start|>user<|message|>Hi<|end|><|start|>assistant"

    def fields(self, tokens, body):
        text = self.shown(tokens).removeprefix("<|channel|>analysis<|message|>")
        reasoning, found, tail = text.partition("<|end|>")
        return reasoning, tail.removeprefix("<|start|>assistant<|channel|>final<|message|>") if found else ""


class HarmonyLeaks(Harmony):
    def fields(self, tokens, body):
        reasoning, content = super().fields(tokens, body)
        return reasoning, content + "<|end|>"


class BudgetBy400(Unguarded):
    """A strict server that knows none of vLLM's fields."""

    told = ()
    extra = frozenset({"vllm_xargs", "thinking_token_budget", "return_prompt_text", "return_tokens_as_token_ids"})


class NativeOnly(Unguarded):
    """vLLM alone with a reasoning parser: its own budget works."""

    def sample(self, body):
        num = body.get("thinking_token_budget", len(self.thinking))
        return self.cut([*self.start, *self.thinking[:num], *self.end, *self.answer, *self.eos], body)


class NativeWithMessage(Healthy):
    """The server's default close message comes on top of vLLM's own field."""

    def sample(self, body):
        tokens, finish = super().sample(body)
        if "thinking_token_budget" in body:
            at = tokens.index("</think>") - 1
            tokens[at:at] = [" Time", " is", " up", "."]
        return tokens, finish


class StreamLeaks(Healthy):
    def deltas(self, tokens, body):
        reasoning, content = self.fields(tokens, body)
        return [(reasoning, ""), ("", "</th"), ("", "ink>"), ("", content)]


class StreamLosesAWord(Healthy):
    def deltas(self, tokens, body):
        reasoning, content = self.fields(tokens, body)
        return [(reasoning, ""), ("", content.replace("The", ""))]


class StreamMisplaces(Healthy):
    told = ()

    def deltas(self, tokens, body):
        reasoning, content = self.fields(tokens, body)
        return [(reasoning + content[:5], ""), ("", content[5:])]


class StreamOfOtherText(Healthy):
    """Greedy runs may differ on a GPU."""

    def sample(self, body):
        self.thinking = tuple(f" turn{i}" for i in range(60)) if body.get("stream") else THINKING
        return super().sample(body)


class StreamOfOtherTextUntold(StreamOfOtherText):
    told = ()


class StreamFails(Healthy):
    def events(self, tokens, finish, body):
        yield {"error": {"message": "the engine is dead", "code": 500}}


class StreamCut(Healthy):
    def events(self, tokens, finish, body):
        return list(super().events(tokens, finish, body))[:3]


class StreamBroken(Healthy):
    def streamed(self, events):
        return "text/event-stream", b"data: {oops\n\n"


class StreamIgnored(Healthy):
    def streamed(self, events):
        return self.encoded({"choices": []})


class Untold(Healthy):
    """A server that says nothing about tokens; the thinking is counted by its share of the text."""

    told = ()


class Counted(Untold):
    def tokenize(self, body):
        return {"count": len(body["prompt"].split())}


class OldField(Healthy):
    field = "reasoning_content"
    told = ("reasoning_tokens",)


class Parts(Untold):
    """Mistral's own way: typed parts."""

    def message(self, reasoning, content):
        thinking = {"type": "thinking", "thinking": [{"type": "text", "text": reasoning}]}
        return {"content": [thinking, {"type": "text", "text": content}]}


class OffUnlessAsked(Healthy):
    def sample(self, body):
        if body.get("chat_template_kwargs", {}).get("enable_thinking"):
            return super().sample(body)
        self.policy(body)
        return [*self.answer, *self.eos], "stop"

    def fields(self, tokens, body):
        return super().fields(tokens, body) if "<think>" in tokens else ("", self.shown(tokens))


class ClosedByTemplate(Unguarded):
    prompt = "<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def sample(self, body):
        return [*self.answer, *self.eos], "stop"

    def fields(self, tokens, body):
        return "", self.shown(tokens)


class NeverThinks(ClosedByTemplate):
    prompt = "<|im_start|>assistant\n"


class LeftAlone(NeverThinks):
    """thinkguard is loaded with opening="allow"."""

    def sample(self, body):
        Healthy.policy(self, body)
        return super().sample(body)


class TakesAnswerForThinking(NeverThinks):
    def fields(self, tokens, body):
        return self.shown(tokens), ""


class MisplacedSplit(Healthy):
    def fields(self, tokens, body):
        reasoning, content = super().fields(tokens, body)
        return reasoning[:-4], reasoning[-4:] + content


class MarkerInReasoning(Healthy):
    def fields(self, tokens, body):
        reasoning, content = super().fields(tokens, body)
        return "<think>" + reasoning, content


class EmptyAnswer(Healthy):
    answer = ("\n",)


class EndlessAnswer(Healthy):
    answer = ANSWER * 500


class AcceptsMisspelt(Healthy):
    def policy(self, body):
        try:
            return super().policy(body)
        except Refusal:
            return {}


class GatewayHidesStatus(Healthy):
    def policy(self, body):
        try:
            return super().policy(body)
        except Refusal as error:
            raise Refusal(502, error.args[1]) from None


class IgnoresXargsAlone(Healthy):
    """thinkguard is loaded, but stands aside."""

    def policy(self, body):
        super().policy(body)
        return {}


class ZeroThinksOnce(Healthy):
    def policy(self, body):
        policy = super().policy(body)
        return policy | ({"max_thinking_tokens": 3} if policy.get("max_thinking_tokens") == 0 else {})


class FailsWithLittleRoom(Healthy):
    def sample(self, body):
        if body["max_tokens"] < 100:
            raise Refusal(500, "EngineCore died")
        return super().sample(body)


class ThinksLittle(Healthy):
    thinking = (" easy",)


CASES = {
    Healthy: {},
    WithoutParser: {"separated": P, "content": S},
    WithoutParserAndStart: {"separated": P, "content": S},
    WithoutParserSpelled: {"separated": P, "content": S},
    SpecialDropped: {"separated": P, "content": S},
    NeverCloses: {"closed": P, "answer": S, **IGNORED},
    StopsInside: {"closed": P, "answer": S, **IGNORED},
    Unguarded: IGNORED,
    Leaks: {"content": P},
    LeaksHalf: {"content": P},
    PhiLike: {},
    SharedCharacters: {},
    Harmony: {},
    HarmonyLeaks: {"content": P},
    BudgetBy400: {**IGNORED, "little-room": S},
    NativeOnly: {**IGNORED, "native-budget": "ok"},
    NativeWithMessage: {},
    StreamLeaks: {"stream": P},
    StreamLosesAWord: {"stream": P},
    StreamMisplaces: {"stream": P},
    StreamOfOtherText: {},
    StreamOfOtherTextUntold: {"stream": C},
    StreamFails: {"stream": P},
    StreamCut: {"stream": P},
    StreamBroken: {"stream": P},
    StreamIgnored: {"stream": P},
    Untold: {},
    Counted: {},
    OldField: {},
    Parts: {},
    OffUnlessAsked: {"opened": N},
    ClosedByTemplate: dict.fromkeys(("opened",), P) | dict.fromkeys(("closed", "separated", *NAMES[7:]), S),
    NeverThinks: dict.fromkeys(("opened",), P) | dict.fromkeys(("closed", "separated", *NAMES[7:]), S),
    LeftAlone: dict.fromkeys(("opened",), P) | dict.fromkeys(("closed", "separated", *NAMES[7:10], "little-room"), S),
    TakesAnswerForThinking: dict.fromkeys(("opened",), P) | dict.fromkeys(("closed", "answer", "separated", *NAMES[7:]), S),
    MisplacedSplit: {"separated": P},
    MarkerInReasoning: {"separated": P},
    EmptyAnswer: {"answer": P},
    EndlessAnswer: {"answer": P},
    AcceptsMisspelt: {"misspelt-field": P},
    GatewayHidesStatus: {"misspelt-field": P},
    IgnoresXargsAlone: {"budget": P, "native-budget": P, "zero-budget": S, "little-room": "ok"},
    ZeroThinksOnce: {"zero-budget": P},
    FailsWithLittleRoom: {"little-room": P},
    ThinksLittle: {"budget": S, "native-budget": S, "zero-budget": S, "little-room": C},
}


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_each_fault_gives_exactly_its_findings(kind):
    report = examined(kind())
    print(report.as_text())
    assert found(report) == {name: status for name, status in CASES[kind].items() if status != "ok"}


SAYS = {
    WithoutParser: ("separated", "--reasoning-parser deepseek_r1"),
    WithoutParserAndStart: ("separated", "'</think>' in the content, the start in the prompt"),
    WithoutParserSpelled: ("separated", "--reasoning-parser olmo3"),
    SpecialDropped: ("separated", "skip_special_tokens dropped them) | vllm serve MODEL --reasoning-parser mistral"),
    NeverCloses: ("closed", "still thinking after 1024 of 1024 tokens"),
    StopsInside: ("closed", "finish_reason 'stop' inside the thinking"),
    Unguarded: ("budget", "60 tokens of thinking, then an answer | thinkguard is not loaded: vllm serve MODEL --logits-"),
    Leaks: ("content", "'</think>' in the content of 4 of 4 answers"),
    HarmonyLeaks: ("content", "'<|end|>' in the content"),
    BudgetBy400: ("budget", "HTTP 400: Unrecognized request argument supplied: vllm_xargs"),
    NativeWithMessage: ("native-budget", "20 tokens of thinking, then an answer; the server's own close message"),
    StreamLeaks: ("stream", "'</think>' in the streamed content, not in the whole one"),
    StreamLosesAWord: ("stream", "the same tokens, but other fields"),
    StreamFails: ("stream", "streams an error: the engine is dead"),
    StreamCut: ("stream", "without a finish_reason"),
    StreamBroken: ("stream", "streams an event that is not JSON: '{oops'"),
    StreamIgnored: ("stream", "with application/json, wanted text/event-stream"),
    Untold: ("opened", "tokens or so"),
    Counted: ("opened", "60 tokens or so"),
    OldField: ("separated", "in `reasoning_content`"),
    Parts: ("separated", "in `content`"),
    ClosedByTemplate: ("opened", "the chat template closes it at once"),
    NeverThinks: ("opened", "open it by force: vllm serve MODEL --logits-processors"),
    LeftAlone: ("opened", "thinkguard is loaded: look at its opening="),
    TakesAnswerForThinking: ("opened", "the reasoning parser takes the answer for thinking ('The answer is 579.')"),
    IgnoresXargsAlone: ("budget", "thinkguard is loaded but leaves this request alone"),
    GatewayHidesStatus: ("misspelt-field", "HTTP 502"),
    Healthy: ("misspelt-field", "HTTP 400: unknown policy field 'max_thinkin_tokens': did you mean 'max_thinking_tokens'?"),
    FailsWithLittleRoom: ("little-room", "max_tokens=30: "),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAYS, ids=lambda kind: kind.__name__)
def test_findings_say_what_was_seen_and_what_to_do(kind):
    name, words = SAYS[kind]
    assert words in told(examined(kind()), name)


def test_the_questions_are_few_short_and_greedy():
    fake = Healthy()
    examined(fake)
    assert len(fake.bodies) == 7
    assert len(fake.keys) == 9, "two of them ask what is served"
    assert {body["temperature"] for body in fake.bodies} == {0}
    assert max(body["max_tokens"] for body in fake.bodies) == 1024
    assert sum("stream" in body for body in fake.bodies) == 1


def test_a_short_context_shortens_the_answers():
    fake = Healthy()
    fake.models = lambda: {"data": [{"id": "tiny", "max_model_len": 512}]}
    examined(fake)
    assert max(body["max_tokens"] for body in fake.bodies) == 256


def test_a_server_that_refuses_to_tell_about_tokens_is_asked_without():
    class Strict(Untold):
        extra = frozenset({"return_prompt_text", "return_tokens_as_token_ids", "logprobs"})

    fake = Strict()
    assert found(examined(fake)) == {}
    assert ["logprobs" in body for body in fake.bodies] == [True, True] + [False] * 7


def test_telling_markers_leave_out_words_and_what_ends_turns():
    assert {"<think>", "</think>", "[/THINK]", "<|channel|>analysis<|message|>", "<channel|>"} <= telling()
    assert not {"<|end|>", "Here is my response:", "<tool_call>", "<answer>"} & telling()


def raised(fake, **arguments):
    with pytest.raises((ServerError, InputError)) as caught:
        examined(fake, **arguments)
    return str(caught.value)


def test_what_cannot_be_asked_is_one_sentence():
    class Web(Healthy):
        def encoded(self, answer):
            return "text/html", b"<!doctype html><title>Welcome</title>"

    class Oops(Healthy):
        def encoded(self, answer):
            return "application/json", b'{"data": ['

    class Empty(Healthy):
        def models(self):
            return {"data": []}

    class NoTemplate(Healthy):
        def chat(self, body):
            raise Refusal(400, "default chat template is no longer allowed, so you must provide a chat template")

    class NoChat(Healthy):
        def chat(self, body):
            raise Refusal(404, "Not Found")

    class Dies(Healthy):
        def chat(self, body):
            raise Refusal(500, "Internal Server Error")

    class Hollow(Healthy):
        def chat(self, body):
            return {"object": "chat.completion", "choices": []}

    class Moved(Healthy):
        def models(self):
            raise Refusal(308, "https://elsewhere.example/v1/models")

    class Locked(Healthy):
        key = "secret"

    class NotThere(Healthy):
        def models(self):
            raise Refusal(404, "Not Found")

    assert "answers text/html that is not JSON: '<!doctype html>" in raised(Web())
    assert "is the URL that of a web page?" in raised(Web())
    assert "answers application/json that is not JSON: '{\"data\": ['" in raised(Oops())
    assert "lists no model" in raised(Empty())
    assert "no chat with 'tiny'" in raised(NoTemplate())
    assert "serve it with a chat template (--chat-template FILE)" in raised(NoTemplate())
    assert "is it a model for chats" in raised(NoChat())
    assert "answers HTTP 500: Internal Server Error" in raised(Dies())
    assert "without choices[0].message" in raised(Hollow())
    assert "redirects to https://elsewhere.example/v1/models: pass that server as --url" in raised(Moved())
    assert "HTTP 401: Unauthorized; pass the server's key with --api-key or in OPENAI_API_KEY" in raised(Locked())
    assert "answers HTTP 404" in raised(NotThere())
    assert found(examined(NotThere(), model="tiny")) == {}, "a server without a list of models"
    assert "--model tinny is not served" in raised(Healthy(), model="tinny")
    assert "did you mean 'tiny'? (tiny)" in raised(Healthy(), model="tinny")


def test_a_server_that_takes_its_time_or_hangs_up():
    class Slow(Healthy):
        slow_if = "temperature"

        def __init__(self):
            super().__init__()
            self.seen = threading.Event()

        def chat(self, body):
            if self.slow_if in body:
                self.seen.wait(30)
            return super().chat(body)

    fake = Slow()
    with serving(fake) as url:
        with pytest.raises(ServerError, match=r"chat/completions did not answer within 0\.1 s"):
            examine_server(url, timeout=0.1)
        fake.seen.set()

    class SlowUnderBudget(Slow):
        slow_if = "thinking_token_budget"

    fake = SlowUnderBudget()
    with serving(fake) as url:
        report = examine_server(url, timeout=1)
        fake.seen.set()
    assert found(report) == {"native-budget": P}
    assert "did not answer within 1 s" in told(report, "native-budget")

    class HangsUp(Healthy):
        def chat(self, body):
            raise ConnectionAbortedError

    assert "broke the connection off" in raised(HangsUp())


def test_nothing_listens():
    with serving(Healthy()) as url:
        pass
    with pytest.raises(ServerError, match=r"nothing listens at http://127\.0\.0\.1:.*: connection refused"):
        examine_server(url)


@pytest.mark.parametrize("ending", ["", "/", "/chat/completions", "/models/"])
def test_the_url_may_end_in_many_ways(ending):
    with serving(Healthy()) as url:
        assert examine_server(url + ending).subject.startswith(f"{url}, model 'tiny'")


def test_the_url_needs_no_v1_and_no_scheme():
    with serving(Healthy()) as url:
        bare = url.removeprefix("http://").removesuffix("/v1")
        assert examine_server(bare).subject.startswith(url)

    class Elsewhere(Healthy):
        path = "/openai"

    with serving(Elsewhere()) as url:
        assert examine_server(url).subject.startswith(url)


def test_urls():
    assert base_urls("https://host.example/v1/") == ("https://host.example/v1",)
    assert base_urls("host:8000") == ("http://host:8000/v1", "http://host:8000")
    assert base_urls("http://[::1]:8000/api/v1/models") == ("http://[::1]:8000/api/v1",)
    for url, words in {
        "ftp://host/v1": "wanted http://HOST:PORT/v1",
        "http://:8000/v1": "wanted http://HOST:PORT/v1",
        "http://host:80x/v1": "--url http://host:80x/v1: Port could not be cast",
        "http://host:0/v1": "wanted",
        "http://me:pw@host/v1": "pass the key with --api-key",
        "http://host/v1?key=3": "holds a query",
    }.items():
        with pytest.raises(InputError, match=words.replace("[", r"\[")):
            base_urls(url)


def test_errors_keep_status_and_message():
    error = RefusedError("http://host/v1/models", 503, "busy")
    assert (error.status, error.message, str(error)) == (503, "busy", "http://host/v1/models answers HTTP 503: busy")


def test_the_command(capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(Healthy()) as url:
        assert cli.main(["doctor", "--url", url]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{url}, model 'tiny'\nok")
    assert err == "12 checks: 12 ok\n"
    with serving(Unguarded()) as url:
        assert cli.main(["doctor", "--url", url, "--model", "tiny", "--json", "--timeout", "5"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [check["name"] for check in report["checks"]] == list(NAMES)
    assert report["ok"] is False
    assert err == "12 checks: 7 ok, 3 problem, 2 skipped\n"
    assert cli.main(["doctor", "--url", url]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("thinkguard doctor: nothing listens at")
    assert cli.main(["doctor"]) == 2
    assert "give --url http://HOST:PORT/v1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main(["doctor", "--url", url, "--timeout", "0"])
    assert "'0' is not a number of seconds above 0" in capsys.readouterr().err


def test_the_key_is_sent_and_never_shown(capsys, monkeypatch):
    class Locked(Healthy):
        key = "sesame"

    for arguments, variable in ((["--api-key", "sesame"], "wrong"), ([], "sesame")):
        monkeypatch.setenv("OPENAI_API_KEY", variable)
        fake = Locked()
        with serving(fake) as url:
            assert cli.main(["doctor", "--url", url, *arguments]) == 0
        assert set(fake.keys) == {"Bearer sesame"}
        assert "sesame" not in "".join(capsys.readouterr())


def test_a_problem_has_to_say_how_to_fix_it():
    with pytest.raises(InputError, match="how to fix it"):
        Check("stream", "problem", "cut off")
    with pytest.raises(InputError, match="none of ok, problem"):
        Check("stream", "bad", "cut off")


def test_a_report_reads_well():
    good = Check("server", "ok", "up", "up", "switch it on")
    bad = Check("answer", "problem", "none", "one", "ask again", ("''",))
    report = Report("here", (good, bad))
    assert report.problems == (bad,)
    assert report.as_text() == (
        "here\n"
        "ok              server   up\n"
        "problem         answer   none\n"
        "                wanted:  one\n"
        "                fix:     ask again\n"
        "                seen:    ''"
    )
    assert report.as_dict()["checks"][1]["evidence"] == ["''"]
