"""Days and months, short questions, and words put in order."""

from __future__ import annotations

import random
from typing import Final

from benches.quality.tasks.task import Task, holds, in_order, last_name

DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_CAPITALS: Final = dict(
    France="Paris", Germany="Berlin", Italy="Rome", Spain="Madrid", Japan="Tokyo", Egypt="Cairo", Greece="Athens",
    Austria="Vienna", Portugal="Lisbon", Russia="Moscow", England="London", Ireland="Dublin", China="Beijing",
    Norway="Oslo", Poland="Warsaw", Hungary="Budapest", Cuba="Havana", Peru="Lima", Sweden="Stockholm", Finland="Helsinki",
)  # fmt: skip
_OPPOSITES: Final = dict(
    hot="cold", big="small", up="down", day="night", fast="slow", young="old", wet="dry", full="empty", hard="soft",
    early="late", open="closed", light="dark", rich="poor", strong="weak", happy="sad", high="low", left="right",
)  # fmt: skip
_PLURALS: Final = dict(
    child="children", mouse="mice", foot="feet", tooth="teeth", man="men", woman="women", city="cities", box="boxes",
    baby="babies", knife="knives", leaf="leaves", wolf="wolves", goose="geese", story="stories", bus="buses",
)  # fmt: skip
_WORDS: Final = (
    *("apple", "banana", "cherry", "date", "fig", "grape", "kiwi", "lemon", "mango", "orange", "peach", "plum"),
    *("bread", "cheese", "egg", "honey", "milk", "rice", "salt", "tea", "water", "zebra"),
)


def dates(rng: random.Random) -> Task:
    """A day or a month so many steps behind another one."""
    names, unit = (DAYS, "day") if rng.random() < 0.6 else (MONTHS, "month")
    begin, num = rng.randrange(len(names)), rng.randrange(2, 5)
    passed = [names[(begin + i) % len(names)] for i in range(num + 1)]
    result = passed[-1]
    asked = f"{num} {unit}s after {passed[0]}"
    question = rng.choice((f"Which {unit} comes {asked}?", f"It is {passed[0]}. Which {unit} is it in {num} {unit}s?"))
    return Task(
        "date",
        question,
        (f"I count from {passed[0]}.", *(f"{i}: {name}." for i, name in enumerate(passed[1:], 1)), f"So it is {result}."),
        f"{asked[0].upper()}{asked[1:]} is {result}.",
        (f"It is {result}.", f"{asked[0].upper()}{asked[1:]} is {result}.", result),
        last_name(result, names),
    )


def facts(rng: random.Random) -> Task:
    """A short question whose answer is a word."""
    pick = rng.randrange(3)
    if pick == 0:
        key, value = rng.choice(list(_CAPITALS.items()))
        question, said = f"What is the capital of {key}?", f"The capital of {key} is {value}."
    elif pick == 1:
        key, value = rng.choice(list(_OPPOSITES.items()))
        question, said = f'What is the opposite of "{key}"?', f'The opposite of "{key}" is "{value}".'
    else:
        key, value = rng.choice(list(_PLURALS.items()))
        question, said = f'What is the plural of "{key}"?', f'The plural of "{key}" is "{value}".'
    return Task(
        "fact",
        question,
        ("This is a short question.", said),
        f"Yes, {value}.",
        (said, f"{value[0].upper()}{value[1:]}."),
        holds(rf"(?i:\b{value}\b)"),
    )


def word_orders(rng: random.Random) -> Task:
    """Three words to be put in the order of the alphabet."""
    words = rng.sample(_WORDS, 3)
    found = sorted(words)
    result = ", ".join(found)
    return Task(
        "words",
        f"Put these words in alphabetical order: {', '.join(words)}.",
        (*(f'"{word}" begins with {word[0]}.' for word in words), f"So it is {result}."),
        f"The order is {result}.",
        (result, f"The order is {result}.", "\n".join(f"- {word}" for word in found)),
        in_order(found),
    )
