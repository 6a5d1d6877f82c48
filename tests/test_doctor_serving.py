"""`thinkguard doctor --url` against small servers that each have one thing wrong."""

from __future__ import annotations

import json
import threading

import pytest
from fake_servers import (
    AcceptsMisspelt,
    BudgetBy400,
    ClosedByTemplate,
    Counted,
    DiesOfMarkers,
    DiesOfResponseFormat,
    EmptyAnswer,
    EmptyUnderFormat,
    EndlessAnswer,
    EndlessJson,
    EndlessUnderFormat,
    FailsWithLittleRoom,
    GatewayHidesStatus,
    GrammarFirst,
    GrammarSwallowed,
    Harmony,
    HarmonyLeaks,
    Healthy,
    IgnoresResponseFormat,
    IgnoresXargsAlone,
    Leaks,
    LeaksHalf,
    LeftAlone,
    LosesQuotedAnswer,
    MarkerInReasoning,
    MisplacedSplit,
    MistakesQuotedMarker,
    NativeOnly,
    NativeWithMessage,
    NeverCloses,
    NeverThinks,
    NoResponseFormat,
    OffUnlessAsked,
    OldField,
    Parts,
    PhiLike,
    Refusal,
    RefusesMarkers,
    ScansPrompt,
    ScansPromptUntold,
    SharedCharacters,
    SpecialDropped,
    StopsInside,
    StreamBroken,
    StreamCut,
    StreamFails,
    StreamIgnored,
    StreamLeaks,
    StreamLosesAWord,
    StreamMisplaces,
    StreamOfOtherText,
    StreamOfOtherTextUntold,
    TakesAnswerForThinking,
    ThinksLittle,
    ThinksNotAboutQuotes,
    Unguarded,
    Untold,
    WithoutParser,
    WithoutParserAndStart,
    WithoutParserSpelled,
    ZeroThinksOnce,
    serving,
)

from thinkguard import InputError, cli
from thinkguard.doctor import Check, Report
from thinkguard.doctor.serving.client import RefusedError, ServerError, base_urls
from thinkguard.doctor.serving.server import examine_server
from thinkguard.formats.marks import telling

NAMES = (
    "server", "opened", "closed", "answer", "separated", "content", "stream",
    "budget", "native-budget", "zero-budget", "misspelt-field", "little-room", "marker-in-prompt", "structured-output",
)  # fmt: skip


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
UNUSUAL = dict.fromkeys(NAMES[12:], S)
IGNORED = {"budget": P, "native-budget": P, "zero-budget": S, "misspelt-field": S, "little-room": P}


CASES = {
    Healthy: {},
    WithoutParser: {"separated": P, "content": S, **UNUSUAL},
    WithoutParserAndStart: {"separated": P, "content": S, **UNUSUAL},
    WithoutParserSpelled: {"separated": P, "content": S, **UNUSUAL},
    SpecialDropped: {"separated": P, "content": S, **UNUSUAL},
    NeverCloses: {"closed": P, "answer": S, **IGNORED, **UNUSUAL},
    StopsInside: {"closed": P, "answer": S, **IGNORED, **UNUSUAL},
    Unguarded: IGNORED,
    Leaks: {"content": P, **UNUSUAL},
    LeaksHalf: {"content": P, **UNUSUAL},
    PhiLike: {},
    SharedCharacters: {},
    Harmony: {},
    HarmonyLeaks: {"content": P, **UNUSUAL},
    BudgetBy400: {**IGNORED, "little-room": S},
    NativeOnly: {**IGNORED, "native-budget": "ok"},
    NativeWithMessage: {},
    StreamLeaks: {"stream": P, "marker-in-prompt": S},
    StreamLosesAWord: {"stream": P, "marker-in-prompt": S},
    StreamMisplaces: {"stream": P, "marker-in-prompt": S},
    StreamOfOtherText: {},
    StreamOfOtherTextUntold: {"stream": C},
    StreamFails: {"stream": P, "marker-in-prompt": S},
    StreamCut: {"stream": P, "marker-in-prompt": S},
    StreamBroken: {"stream": P, "marker-in-prompt": S},
    StreamIgnored: {"stream": P, "marker-in-prompt": S},
    Untold: {},
    Counted: {},
    OldField: {},
    Parts: {},
    OffUnlessAsked: {"opened": N},
    ClosedByTemplate: dict.fromkeys(("opened",), P) | dict.fromkeys(("closed", "separated", *NAMES[7:]), S),
    NeverThinks: dict.fromkeys(("opened",), P) | dict.fromkeys(("closed", "separated", *NAMES[7:]), S),
    LeftAlone: dict.fromkeys(("opened",), P) | dict.fromkeys(("closed", "separated", *NAMES[7:10], *NAMES[11:]), S),
    TakesAnswerForThinking: dict.fromkeys(("opened",), P) | dict.fromkeys(("closed", "answer", "separated", *NAMES[7:]), S),
    MisplacedSplit: {"separated": P, **UNUSUAL},
    MarkerInReasoning: {"separated": P, **UNUSUAL},
    EmptyAnswer: {"answer": P},
    EndlessAnswer: {"answer": P},
    AcceptsMisspelt: {"misspelt-field": P},
    GatewayHidesStatus: {"misspelt-field": P},
    IgnoresXargsAlone: {"budget": P, "native-budget": P, "zero-budget": S, "little-room": "ok"},
    ZeroThinksOnce: {"zero-budget": P},
    FailsWithLittleRoom: {"little-room": P},
    ScansPrompt: {"marker-in-prompt": "note"},
    ScansPromptUntold: {"marker-in-prompt": "note"},
    MistakesQuotedMarker: {"marker-in-prompt": "note"},
    LosesQuotedAnswer: {"marker-in-prompt": "note"},
    ThinksNotAboutQuotes: {"marker-in-prompt": C},
    RefusesMarkers: {"marker-in-prompt": S},
    DiesOfMarkers: {"marker-in-prompt": P},
    GrammarFirst: {"structured-output": P},
    GrammarSwallowed: {"structured-output": P},
    NoResponseFormat: {"structured-output": S},
    IgnoresResponseFormat: {"structured-output": N},
    DiesOfResponseFormat: {"structured-output": P},
    EmptyUnderFormat: {"structured-output": P},
    EndlessJson: {},
    EndlessUnderFormat: {"structured-output": C},
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
    ScansPrompt: ("marker-in-prompt", "is answered with its thinking in the content | break up markers"),
    ScansPromptUntold: ("marker-in-prompt", "with markers in the content, and no `reasoning`"),
    MistakesQuotedMarker: ("marker-in-prompt", "a `reasoning` that is not what stands between the markers"),
    LosesQuotedAnswer: ("marker-in-prompt", "the answer is missing"),
    RefusesMarkers: ("marker-in-prompt", "HTTP 400: special tokens in the prompt"),
    GrammarFirst: ("structured-output", "JSON without any thinking | vllm serve MODEL --reasoning-parser NAME"),
    GrammarSwallowed: ("structured-output", "the JSON is in `reasoning`, not in the content"),
    DiesOfResponseFormat: ("structured-output", "response_format: "),
    EmptyUnderFormat: ("structured-output", "no content at all"),
    EndlessJson: ("structured-output", "60 tokens of thinking, then JSON, cut off at 1024 tokens"),
    EndlessUnderFormat: ("structured-output", "no JSON within 1024 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAYS, ids=lambda kind: kind.__name__)
def test_findings_say_what_was_seen_and_what_to_do(kind):
    name, words = SAYS[kind]
    assert words in told(examined(kind()), name)


def test_the_questions_are_few_short_and_greedy():
    fake = Healthy()
    examined(fake)
    assert len(fake.bodies) == 9
    assert len(fake.keys) == 11, "two of them ask what is served"
    assert {body["temperature"] for body in fake.bodies} == {0}
    assert max(body["max_tokens"] for body in fake.bodies) == 1024
    assert sum("stream" in body for body in fake.bodies) == 2


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
    assert ["logprobs" in body for body in fake.bodies] == [True, True] + [False] * 9


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
    assert err == "14 checks: 14 ok\n"
    with serving(Unguarded()) as url:
        assert cli.main(["doctor", "--url", url, "--model", "tiny", "--json", "--timeout", "5"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [check["name"] for check in report["checks"]] == list(NAMES)
    assert report["ok"] is False
    assert err == "14 checks: 9 ok, 3 problem, 2 skipped\n"
    assert cli.main(["doctor", "--url", url]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("thinkguard doctor: nothing listens at")
    assert cli.main(["doctor"]) == 2
    assert "or --url http://HOST:PORT/v1" in capsys.readouterr().err
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
    with pytest.raises(InputError, match="none of ok, note, problem"):
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
        "                why:     the caller sees only what stands behind the thinking\n"
        "                fix:     ask again\n"
        "                seen:    ''\n"
        "                see:     omlx #3796, lm-eval PR #3700"
    )
    assert report.as_dict()["checks"][1]["evidence"] == ["''"]
