"""Small OpenAI-compatible servers on loopback: a healthy one, and some that each have one thing wrong."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

THINKING = tuple(f" step{i}" for i in range(60))
ANSWER = ("The", " answer", " is", " 579", ".")
JSON = ('{"sum":', ' "579"', "}")


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

    def said(self, body):
        """The tokens of an answer behind the thinking."""
        return JSON if "response_format" in body else self.answer

    def sample(self, body):
        """(tokens, finish_reason) of an answer."""
        policy = self.policy(body)
        around = len(self.start + self.end) + policy.get("reserve_answer_tokens", 1) + 1
        num = min(len(self.thinking), policy.get("max_thinking_tokens", 10**6), body["max_tokens"] - around)
        return self.cut([*self.start, *self.thinking[:num], *self.end, *self.said(body), *self.eos], body)

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
        return self.cut([*self.start, *self.thinking, *self.end, *self.said(body), *self.eos], body)


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
        return self.cut([*self.start, *self.thinking[:num], *self.end, *self.said(body), *self.eos], body)


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
        return [*self.said(body), *self.eos], "stop"

    def fields(self, tokens, body):
        return super().fields(tokens, body) if "<think>" in tokens else ("", self.shown(tokens))


class ClosedByTemplate(Unguarded):
    prompt = "<|im_start|>assistant\n<think>\n\n</think>\n\n"

    def sample(self, body):
        return [*self.said(body), *self.eos], "stop"

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


class ScansPrompt(Healthy):
    """A parser that looks for the end marker in all of the prompt when it streams."""

    def deltas(self, tokens, body):
        if "</think>" in body["messages"][-1]["content"]:
            return [("", self.shown(tokens))]
        return super().deltas(tokens, body)


class ScansPromptUntold(ScansPrompt):
    told = ()


class MistakesQuotedMarker(Healthy):
    """The quoted marker shifts where the answer is thought to begin."""

    def deltas(self, tokens, body):
        reasoning, content = self.fields(tokens, body)
        if "</think>" in body["messages"][-1]["content"]:
            return [(reasoning[:5], ""), ("", reasoning[5:] + content)]
        return super().deltas(tokens, body)


class LosesQuotedAnswer(Healthy):
    def deltas(self, tokens, body):
        deltas = super().deltas(tokens, body)
        quotes = "</think>" in body["messages"][-1]["content"]
        return [delta for delta in deltas if delta[0]] if quotes else deltas


class ThinksNotAboutQuotes(Healthy):
    told = ()

    def fields(self, tokens, body):
        reasoning, content = super().fields(tokens, body)
        return ("" if "</think>" in body["messages"][-1]["content"] else reasoning), content


class RefusesMarkers(Healthy):
    def sample(self, body):
        if "</think>" in body["messages"][-1]["content"]:
            raise Refusal(400, "special tokens in the prompt")
        return super().sample(body)


class DiesOfMarkers(RefusesMarkers):
    def sample(self, body):
        if "</think>" in body["messages"][-1]["content"]:
            raise Refusal(500, "EngineCore died")
        return super().sample(body)


class GrammarFirst(Healthy):
    """The grammar starts at the first token: JSON, and no thinking."""

    def sample(self, body):
        if "response_format" not in body:
            return super().sample(body)
        return self.cut([*JSON, *self.eos], body)

    def fields(self, tokens, body):
        return ("", self.shown(tokens)) if "response_format" in body else super().fields(tokens, body)


class GrammarSwallowed(GrammarFirst):
    """The parser waits for an end marker that the grammar does not allow."""

    def fields(self, tokens, body):
        return (self.shown(tokens), "") if "response_format" in body else super().fields(tokens, body)


class NoResponseFormat(Healthy):
    extra = frozenset({"response_format"})


class IgnoresResponseFormat(Healthy):
    def said(self, body):
        return self.answer


class DiesOfResponseFormat(Healthy):
    def said(self, body):
        if "response_format" in body:
            raise Refusal(500, "no grammar backend")
        return self.answer


class EmptyUnderFormat(Healthy):
    def said(self, body):
        return () if "response_format" in body else self.answer


class EndlessJson(Healthy):
    def said(self, body):
        return ('{"sum":', *(["\n"] * 5000)) if "response_format" in body else self.answer


class EndlessUnderFormat(Healthy):
    def said(self, body):
        return self.answer * (1000 if "response_format" in body else 1)
