"""Tasks of the LM Evaluation Harness with data of their own: nothing is downloaded."""

import json
from pathlib import Path

from text_corpora import WORDS

_YAML = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
metadata: {{version: 1.0}}
"""
_CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
_LAST_WORD = """\
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{choices[answer]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
_ROLLING = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""
_GENERATE = """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
TASKS = {
    "tiny_choice": _CHOICE,
    "tiny_last_word": _LAST_WORD,
    "tiny_rolling": _ROLLING,
    "tiny_generate": _GENERATE,
}


def write_tasks(folder: Path, questions: int = 12) -> Path:
    """Writes the tasks, and questions about the words of the test corpora, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    words = WORDS["downstream"].split()
    lines = []
    for number in range(questions):
        text = " ".join(words[(number * 3 + i) % len(words)] for i in range(6 + number % 5))
        choices = [words[(number * 5 + i) % len(words)] for i in range(4)]
        lines.append({"question": text, "choices": choices, "answer": number % 4, "text": text * 3})
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, rest in TASKS.items():
        (folder / f"{name}.yaml").write_text(_YAML.format(name=name, data=data) + rest)
    return folder
