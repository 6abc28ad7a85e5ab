"""Small corpora of random words."""

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
