"""Small corpora: random words, and English sentences."""

import json
import random
from pathlib import Path

WORDS = {
    "upstream": "the learning rate of a run is raised and then it decays to its end",
    "downstream": "ein neues Korpus kommt und das Modell lernt es schnell oder langsam",
    "third": "def train return step for in range print loss yield while None",
}


def write_texts(path: Path, name: str, documents: int, seed: int = 0) -> Path:
    """Writes a jsonl of documents of random words; lengths vary from a few words to many."""
    draw = random.Random(f"{name}/{seed}")
    with path.open("w", encoding="utf-8") as file:
        for _ in range(documents):
            text = " ".join(draw.choices(WORDS[name].split(), k=draw.randint(3, 200)))
            file.write(json.dumps({"text": text}) + "\n")
    return path


_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """Returns a number below 1,000 in words: `four hundred and twelve`."""
    hundreds, rest = divmod(number, 100)
    tens, units = divmod(rest, 10)
    small = _UNITS[rest] if rest < 20 else _TENS[tens - 2] + (f"-{_UNITS[units]}" if units else "")
    if not hundreds:
        return small
    return f"{_UNITS[hundreds]} hundred" + (f" and {small}" if rest else "")


def write_sums(path: Path, documents: int) -> Path:
    """Writes a jsonl of English sentences that nobody owns: sums in words, 25 in a document."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(documents):
            pairs = [(draw.randrange(500), draw.randrange(500)) for _ in range(25)]
            sums = (f"{in_words(a)} plus {in_words(b)} is {in_words(a + b)}." for a, b in pairs)
            file.write(
                json.dumps({"text": " ".join(sentence.capitalize() for sentence in sums)}) + "\n"
            )
    return path
