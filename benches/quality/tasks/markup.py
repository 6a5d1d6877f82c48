"""HTML, code and JSON: answers whose own brackets are nobody's markers."""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Callable
from typing import Any, Final

from benches.quality.tasks.numbers import NAMES
from benches.quality.tasks.task import Task, fenced, holds

_THINGS: Final = ("apples", "bread", "milk", "tea", "rice", "salt", "honey", "eggs", "cheese", "plums")
_HEADS: Final = (("Name", "Age"), ("Item", "Price"), ("City", "Country"), ("Day", "Hours"), ("Fruit", "Colour"))
_SITES: Final = ("example.com", "example.org", "example.net")
_PAGES: Final = ("Welcome", "About us", "Contact", "News", "Prices", "Our team")
_FUNCTIONS: Final = (
    ("add", "a, b", "a + b", "adds two numbers"),
    ("subtract", "a, b", "a - b", "subtracts b from a"),
    ("multiply", "a, b", "a * b", "multiplies two numbers"),
    ("double", "x", "x * 2", "doubles a number"),
    ("square", "x", "x * x", "squares a number"),
    ("is_even", "n", "n % 2 == 0", "tells whether a number is even"),
    ("area", "width, height", "width * height", "computes the area of a rectangle"),
    ("first", "items", "items[0]", "returns the first item of a list"),
    ("last", "items", "items[-1]", "returns the last item of a list"),
    ("length", "items", "len(items)", "returns the length of a list"),
    ("upper", "text", "text.upper()", "turns a text into upper case"),
    ("total", "items", "sum(items)", "adds up a list"),
)


def html(rng: random.Random) -> Task:
    """A list, a table's head, a link or a heading."""
    pick = rng.randrange(4)
    if pick == 0:
        tag, words = rng.choice(("ul", "ol")), rng.sample(_THINGS, 2)
        asked = f"an HTML {'bullet' if tag == 'ul' else 'numbered'} list of {words[0]} and {words[1]}"
        code = "\n".join([f"<{tag}>", *(f"  <li>{word}</li>" for word in words), f"</{tag}>"])
        thought = f"A {'bullet' if tag == 'ul' else 'numbered'} list is <{tag}>, and each item is <li>."
        patterns = [f"<{tag}>", *(rf"<li>\s*{word}\s*</li>" for word in words), f"</{tag}>"]
    elif pick == 1:
        heads = rng.choice(_HEADS)
        asked = f"the HTML of a table row with the headings {heads[0]} and {heads[1]}"
        code = "\n".join(["<tr>", *(f"  <th>{head}</th>" for head in heads), "</tr>"])
        thought = "A row is <tr>, and a heading in it is <th>."
        patterns = ["<tr>", *(rf"<th>\s*{head}\s*</th>" for head in heads), "</tr>"]
    elif pick == 2:
        site, page = rng.choice(_SITES), rng.choice(_PAGES)
        asked = f'an HTML link to https://{site} with the text "{page}"'
        code = f'<a href="https://{site}">{page}</a>'
        thought = "A link is <a> with an href."
        patterns = [rf'<a href="https://{re.escape(site)}/?">\s*{page}\s*</a>']
    else:
        level, page = rng.randrange(1, 4), rng.choice(_PAGES)
        asked = f'an HTML heading of level {level} that says "{page}"'
        code = f"<h{level}>{page}</h{level}>"
        thought = f"A heading of level {level} is <h{level}>."
        patterns = [rf"<h{level}>\s*{page}\s*</h{level}>"]
    return Task(
        "html",
        f"Write {asked}.",
        (thought, "I close every tag that I open."),
        "Every tag is closed.",
        (code, fenced("html", code)),
        holds(*patterns),
    )


def code(rng: random.Random) -> Task:
    """A Python function of one line."""
    name, arguments, result, does = rng.choice(_FUNCTIONS)
    name = rng.choice((name, f"my_{name}", f"{name}_it"))
    written = f"def {name}({arguments}):\n    return {result}"
    return Task(
        "code",
        f"Write a Python function `{name}({arguments})` that {does}.",
        (f"The function {does}.", f"It returns {result}."),
        f"{result} is right.",
        (fenced("python", written), f"Here it is:\n\n{fenced('python', written)}"),
        _defines(name, result),
    )


def _defines(name: str, result: str) -> Callable[[str], bool]:
    """Return a check: the answer's code parses, and the function returns this expression."""
    wanted = ast.dump(ast.parse(result, mode="eval").body)

    def right(answer: str) -> bool:
        found = re.search(r"```(?:python)?\n([\s\S]*?)\n```", answer)
        try:
            tree = ast.parse(found.group(1) if found else answer)
        except (SyntaxError, ValueError):
            return False
        return any(
            isinstance(node, ast.FunctionDef)
            and node.name == name
            and any(isinstance(inner, ast.Return) and inner.value and ast.dump(inner.value) == wanted for inner in node.body)
            for node in tree.body
        )

    return right


def json_objects(rng: random.Random) -> Task:
    """A JSON object of two fields."""
    who, age = rng.choice(NAMES), rng.randrange(18, 80)
    thing, price = rng.choice(_THINGS), rng.randrange(2, 60)
    asked, fields = rng.choice(
        (
            (f"with the name {who} and the age {age}", {"name": who, "age": age}),
            (f'with the item "{thing}" and the price {price}', {"item": thing, "price": price}),
            (f'with the user "{who.lower()}" and active true', {"user": who.lower(), "active": True}),
        )
    )
    written = json.dumps(fields)
    return Task(
        "json",
        f"Give me a JSON object {asked}.",
        (f"The keys are {' and '.join(fields)}.", f"The object is {written}."),
        "The quotes and the braces match.",
        (written, fenced("json", written)),
        _is_json(fields),
    )


def _is_json(wanted: dict[str, Any]) -> Callable[[str], bool]:
    """Return a check: what stands from the answer's first brace to its last one is this object."""

    def right(answer: str) -> bool:
        found = re.search(r"\{[\s\S]*\}", answer)
        try:
            return bool(found) and json.loads(found.group()) == wanted
        except ValueError:
            return False

    return right
