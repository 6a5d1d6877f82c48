"""The doctor's page, as text and in a real browser: readable, complete, and nothing in it runs or is fetched."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from thinkguard.doctor.catalogue import entries
from thinkguard.doctor.check import Check, Plot, Report
from thinkguard.doctor.page import write as page
from thinkguard.doctor.page.references import link_of
from thinkguard.doctor.page.text import MOST_SHOWN, evidence_html, fix_html, prose_html, visible
from thinkguard.errors import InputError

pytest.importorskip("jinja2", reason="pages need jinja2")
pytest.importorskip("matplotlib", reason="plots need matplotlib")

EDGES = (0.0, *(2.0 ** (i / 2) for i in range(2, 30)))
HEIGHTS = tuple(float(1000 - 4 * (i - 14) ** 2) for i in range(len(EDGES)))
MARKS = ((700.0, "p50 700"), (2300.0, "p90 2,300"), (2048.0, "cutoff_len 2,048"), (2100.0, "p89"), (9e9, "max_model_len"))
PLOTS = (
    Plot("Tokens of reasoning", "tokens", "records", EDGES, HEIGHTS, MARKS),
    # Bins as the audit has them: four to a power of two.
    Plot("Answer", "tokens", "records", tuple(float((4 + i % 4) << i // 4) for i in range(40)), (9.0,) * 40),
    Plot("Turns", "turns", "records", (1.0, 2.0, 3.0, 4.0), (5.0, 0.0, 2.0, 1.0), ((2.5, "median 2.5"),)),
)
LOST = Check(
    "final-reasoning", "problem", "the reasoning of the final turn is gone", "the reasoning in the text that is learned",
    "Mend it: `thinkguard doctor PATH --fix-template OUT.jinja`", ("<｜Assistant｜>⟦<think>\nR\n</think>⟧\n\nA",),
)  # fmt: skip
NOTED = Check("earlier-reasoning", "note", "reasoning of earlier turns is left out", fix="one sample per turn")
REPORT = Report(
    "/models/small, format 'think': <think> ... </think>",
    (
        NOTED, LOST, Check("round-trip", "ok", "nothing changes"), Check("mask-start", "skipped", "see final-reasoning"),
        Check("embedding-rows", "could not tell", "the folder holds no weights"),
    ),
    (("records", "18,230"), ("policy", '{"max_thinking_tokens": 6000}')),
    PLOTS,
)  # fmt: skip


class Tree(HTMLParser):
    """What a page holds: start tags with their attributes, and the text of each kind of element."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in ("meta", "br"):
            self.open.append((tag, attrs.get("class") or "", len(self.texts)))
            self.texts.append((tag, attrs.get("class") or "", []))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if self.open and self.open[-1][0] == tag:
            self.open.pop()

    def handle_data(self, data):
        for _, _, index in self.open:
            self.texts[index][2].append(data)

    def all(self, tag, kind=None):
        return ["".join(texts) for name, css, texts in self.texts if name == tag and kind in (None, *css.split())]


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """dump(path, ...) -> the document that Chromium makes of a file, after its scripts, if it has any, have run."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    profile = tmp_path_factory.mktemp("profile")

    def dump(path, *more):
        command = [
            found, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
            "--virtual-time-budget=3000", *more, "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, timeout=90, check=True)
        return done.stdout.decode("utf-8")

    return dump


@pytest.fixture
def listener():
    """A server on the loopback: its URL, and the paths that were asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_page_says_everything_in_a_browser(browser, tmp_path):
    page.write_page(REPORT, tmp_path / "report.html")
    tree = Tree(browser(tmp_path / "report.html"))
    assert tree.all("h1") == ["1 problem: reasoning or answers are lost in the chat template"]
    assert tree.all("p", "subject") == [REPORT.subject]
    assert tree.all("li")[:3] == [
        "tokenizer1 ok", "chat template1 problem", "datanot examined"
    ]  # fmt: skip
    assert tree.all("h3") == [LOST.found, NOTED.found], "problems come before notes"
    assert tree.all("pre", "seen") == ["<｜Assistant｜><think>\nR\n</think>\n\nA"]
    assert tree.all("mark") == ["<think>\nR\n</think>"]
    assert tree.all("pre", "command") == ["thinkguard doctor PATH --fix-template OUT.jinja", '{"max_thinking_tokens": 6000}']
    for check in (LOST, NOTED):
        assert not check.entry.why or prose_html(check.entry.why) in page.page_of(REPORT)
        assert all(any(name in text for text in tree.all("dd")) for name in check.entry.references)
    assert [text.strip() for text in tree.all("summary")] == ["Not judged: 2", "Fine: 1"]
    assert [attrs for tag, attrs in tree.tags if tag == "details"] == [{}, {}], "closed until they are asked for"
    assert "Tokens of reasoning" in tree.all("figcaption")
    drawn = tree.all("svg")
    assert len(drawn) == len(PLOTS)
    labels = ("records", "tokens", "p50 700", "cutoff_len 2,048", "p89 2,100", "max_model_len 9,000,000,000 →")
    assert all(label in drawn[0] for label in labels)
    assert REPORT.summary() in tree.all("footer")[0]


def test_nothing_runs_and_nothing_is_fetched(browser, listener, tmp_path):
    url, asked = listener
    bad = (
        f'"\'><img src={url}/img onerror="document.title=1"><script src={url}/js></script><script>document.title=2</script>'
        f"<link rel=stylesheet href={url}/css><iframe src={url}/frame></iframe></style></pre></svg><base href={url}/>"
        f"<svg onload=alert(1)><style>@import '{url}/css2';</style>{{{{ 7*7 }}}}{{% raw %}}<think>&lt;think&gt;\ud800\0\x1b"
    )
    check = Check("look-alike", "problem", bad, bad, bad, (bad, f"⟦{bad}⟧"))
    plot = Plot(bad, bad, bad + "$x^2$", (0.0, 1.0), (1.0, 2.0), ((1.5, bad + "$\\frac$"),))
    report = Report(bad, (check, Check("file", "ok", bad), Check("cut-off", "note", bad, fix=bad)), ((bad, bad),), (plot,))
    page.write_page(report, tmp_path / "hostile.html")
    document = browser(tmp_path / "hostile.html")
    tree = Tree(document)
    (tmp_path / "control.html").write_text(f"<img src={url}/control>", encoding="utf-8")
    browser(tmp_path / "control.html")
    assert asked == ["/control"], "only the page made to show that a request would be seen"
    assert {tag for tag, _ in tree.tags} & {"script", "img", "iframe", "link", "base", "object", "embed", "form"} == set()
    assert tree.all("title")[0].startswith("1 problem: reasoning")
    links = [attrs["href"] for tag, attrs in tree.tags if attrs.get("href")]
    assert all(link.startswith(("#", "https://github.com/", "https://arxiv.org/")) for link in links)
    assert [(tag, name) for tag, attrs in tree.tags for name in attrs if name.startswith("on") or name == "src"] == []
    assert [tag for tag, attrs in tree.tags if "url(" in (attrs.get("style") or "").replace("url(#", "")] == []
    assert tree.all("pre", "seen") == [visible(bad)] * 2
    assert tree.all("h3") == [visible(bad)] * 2


def test_a_phone_shows_it_whole_and_labels_do_not_overlap(browser, tmp_path):
    long = Check("nested", "problem", "x" * 400, "y" * 400, "z" * 400, ("a" * 3000, "⟦" + "b" * 3000 + "⟧"))
    report = Report("/models/" + "long" * 100, (*REPORT.checks, long), (*REPORT.facts, ("f" * 200, "v" * 200)), PLOTS)
    page.write_page(report, tmp_path / "report.html")
    # The smallest window of a headless browser is wider than a phone, so the page stands in a frame, measured from outside.
    (tmp_path / "phone.html").write_text(
        """<iframe src="report.html" width="390" height="900"></iframe><output></output><script>
        onload = () => {
          const page = document.querySelector('iframe').contentDocument, {scrollWidth, clientWidth} = page.documentElement;
          const box = ({left, right, top, bottom}) => [left, right, top, bottom];
          const plots = [...page.querySelectorAll('svg')].map(svg =>
            [svg, ...svg.querySelectorAll('text')].map(shape => box(shape.getBoundingClientRect())));
          document.querySelector('output').textContent = JSON.stringify([clientWidth, scrollWidth, plots]);
        };</script>""",
        encoding="utf-8",
    )
    told = Tree(browser(tmp_path / "phone.html", "--allow-file-access-from-files")).all("output")[0]
    visible_width, width, drawings = json.loads(told)
    assert 350 < visible_width == width, "nothing stands out to the right"
    assert all(len(labels) >= 8 for _, *labels in drawings), "ticks, axes and marks"
    for frame, *labels in drawings:
        for i, (left, right, top, bottom) in enumerate(labels):
            assert frame[0] <= left < right <= frame[1] + 1, "a label stands out of its plot"
            assert frame[2] <= top < bottom <= frame[3]
            for other in labels[:i]:
                # Boxes of a font's whole height may touch; two thirds of it are ink.
                over = min(bottom, other[3]) - max(top, other[2]) > (bottom - top) / 3
                assert not over or right <= other[0] or other[1] <= left


def test_evidence_of_a_megabyte_is_cut_around_the_lost_spot():
    text = "a" * 600_000 + "⟦</think>⟧" + "b" * 400_000
    check = Check("nested", "problem", "found", "wanted", "fix", (text, "⟦" * 1_000_000, *("more" for _ in range(30))))
    start = time.perf_counter()
    made = page.page_of(Report("subject", (check,)))
    assert time.perf_counter() - start < 2
    assert len(made) < 40_000
    assert "<mark>&lt;/think&gt;</mark>" in made
    assert f"[{600_000 - MOST_SHOWN // 4:,} characters] … " in made
    assert "characters more]" in made
    assert "and 12 more, in the report as JSON" in made


def test_a_lost_spot_that_is_longer_than_what_is_shown_stays_marked():
    shown = evidence_html("a" * 10 + "⟦" + "b" * (2 * MOST_SHOWN) + "⟧")
    assert re.fullmatch(r"a{10}<mark>b{3989}</mark> … \[4,012 characters more\]", shown)


def test_what_is_invisible_is_named():
    assert visible("a\0\x1b\x7f\x85\u200b\u202e\ud800\ufeff\U000e0041\n\tb") == (
        "a␀␛␡[U+0085][U+200B][U+202E][U+D800][U+FEFF][U+E0041]\n\tb"
    )
    right_to_left = "\u0641\u0643\u0631 ⟦<think>⟧ \u2067x"
    assert evidence_html(right_to_left) == (
        '\u0641\u0643\u0631 <mark>&lt;think&gt;</mark> <span class=hidden title="right-to-left isolate">[U+2067]</span>x'
    )
    assert evidence_html("⟧ ⟦ a⟦⟧") == "⟧ ⟦ a<mark></mark>", "an empty spot is where something is missing"


def block(text):
    return f"<pre class=command><code>{text}</code></pre>"


@pytest.mark.parametrize(
    ("fix", "html"),
    [
        ("plain, no command", "plain, no command"),
        ('set `a="b"` in it', "set <code>a=&quot;b&quot;</code> in it"),
        ("mend it: `thinkguard audit A --fix B`.", "mend it: " + block("thinkguard audit A --fix B")),
        ("mend it: thinkguard audit A --fix B", "mend it: " + block("thinkguard audit A --fix B")),
        (
            "write one with thinkguard doctor P --fix Q, and go",
            "write one with <code>thinkguard doctor P --fix Q</code>, and go",
        ),
        ("thinkguard is loaded: look at its opening=", "thinkguard is loaded: look at its opening="),
        ("vllm serve M --x Y, which keeps it", "<code>vllm serve M --x Y</code>, which keeps it"),
        ("`pip install a b`, then `hf x <y>`", "<code>pip install a b</code>, then " + block("hf x &lt;y&gt;")),
        ("call `t.add_tokens([m], special=False)`", "call " + block("t.add_tokens([m], special=False)")),
    ],
)
def test_a_command_at_the_end_stands_in_a_line_of_its_own(fix, html):
    assert fix_html(fix) == html


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ((), "Nothing could be judged"),
        ((Check("nested", "skipped", "no data"),), "Nothing could be judged"),
        ((Check("nested", "ok", ""),), "No problem found"),
        ((Check("nested", "ok", ""), NOTED), "No problem found, 1 hazard noted"),
        ((Check("nested", "ok", ""), Check("cut-off", "could not tell", "")), "No problem found, 1 check could not tell"),
        ((LOST,), "1 problem: reasoning or answers are lost in the chat template"),
        ((Check("server", "problem", "f", "w", "f"), LOST, Check("nested", "problem", "f", "w", "f")),
         "3 problems: reasoning or answers are lost in the chat template, the data and the server"),
    ],
)  # fmt: skip
def test_the_verdict_is_one_sentence(checks, verdict):
    assert Tree(page.page_of(Report("subject", checks))).all("h1") == [verdict]


def test_a_table_leads_to_many_findings():
    many = tuple(Check(name, "problem", "f", "w", "x") for name in ("nested", "doubled", "reversed"))
    tree = Tree(page.page_of(Report("subject", many)))
    ids = [attrs["id"] for tag, attrs in tree.tags if tag == "article"]
    assert [attrs["href"] for tag, attrs in tree.tags if tag == "a"][:3] == [f"#{name}" for name in ids]


def test_ids_are_unique():
    ids = [attrs["id"] for _, attrs in Tree(page.page_of(REPORT)).tags if "id" in attrs]
    assert sorted(ids) == sorted(set(ids))


def test_no_plot_without_anything_to_draw():
    empty = Plot("None", "x", "y", (0.0, 1.0), (0.0, 0.0), ((0.5, "p50"),))
    assert "Nothing to draw" in page.page_of(Report("subject", (), (), (empty,)))
    with pytest.raises(InputError, match=r"plot 'Wrong': wanted rising left edges"):
        page.page_of(Report("subject", (), (), (Plot("Wrong", "x", "y", (1.0, 1.0), (1.0, 1.0)),)))


def test_a_missing_library_names_the_extra():
    code = (
        "import sys; sys.modules[sys.argv[1]] = None\n"
        "from thinkguard.doctor.page.write import page_of; from thinkguard.doctor.check import Plot, Report\n"
        "try: page_of(Report('s', (), (), (Plot('t', 'x', 'y', (0.0,), (1.0,)),)))\n"
        "except ImportError as error: print(error)"
    )
    for name in ("jinja2", "matplotlib"):
        done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True)
        assert name in done.stdout
        assert done.stdout.rstrip().endswith("pip install 'thinkguard[doctor]'")


def test_an_older_page_is_overwritten_and_nothing_else(tmp_path):
    target = tmp_path / "report.html"
    page.write_page(REPORT, target)
    target.chmod(0o640)
    page.write_page(Report("another one", ()), target)
    assert "another one" in target.read_text(encoding="utf-8")
    assert target.stat().st_mode & 0o777 == 0o640
    for name, text in (("notes.html", "<html>mine</html>"), ("data.jsonl", "{}\n"), ("empty.html", "")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=f"{name}: holds something else than a report of thinkguard"):
            page.write_page(REPORT, tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == text
    with pytest.raises(InputError, match="is no file"):
        page.write_page(REPORT, tmp_path)
    with pytest.raises(InputError, match="there is no folder"):
        page.write_page(REPORT, tmp_path / "absent" / "report.html")
    (tmp_path / "link.html").symlink_to(target)
    page.write_page(REPORT, tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink()
    assert REPORT.summary() in target.read_text(encoding="utf-8")
    assert sorted(os.listdir(tmp_path)) == ["data.jsonl", "empty.html", "link.html", "notes.html", "report.html"]


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_has_contrast_in_both_modes():
    style = Path(page.__file__).with_name("page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.split("* {")[0].split("@media"))
    assert set(light) == set(dark)
    for mode in (light, dark):
        pairs = [(text, ground) for text in ("ink", "muted") for ground in ("page", "card", "sunk")]
        pairs += [(text, "card") for text in ("problem", "note", "ok", "link")]
        pairs += [("problem", "problem-wash"), ("note", "note-wash")]
        for text, ground in pairs:
            bright, dim = sorted((luminance(mode[text]), luminance(mode[ground])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (text, ground)


def test_references_lead_to_their_threads():
    assert link_of("LLaMA-Factory #7080") == "https://github.com/hiyouga/LlamaFactory/issues/7080"
    assert link_of("TRL PR #6766") == "https://github.com/huggingface/trl/pull/6766"
    assert link_of("NeMo Automodel #1640") == "https://github.com/NVIDIA-NeMo/Automodel/issues/1640"
    assert link_of("arXiv 2605.21127") == "https://arxiv.org/abs/2605.21127"
    assert link_of("javascript:alert(1) #1") is None
    assert link_of("an unknown project #5") is None
    assert any(link_of(reference) for entry in entries().values() for reference in entry.references)
