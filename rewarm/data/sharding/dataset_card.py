"""The README.md of a shard folder: a dataset card of the Hugging Face Hub.

Without one, `datasets.load_dataset` reads the folder's JSON files instead of its tars.
"""

from __future__ import annotations

CARD = "README.md"
"""Name of the file."""

_TEXT = """\
Token shards that `rewarm shard` wrote. `index.json` states the counts and the sha256 of each tar,
`tokenizer.json` is the tokenizer. Each tar is a WebDataset of samples of several documents: `npy`
holds their tokens, joined, and `ends.npy` one bit for each token, 1 at the last one of a document:

```python
bits = np.unpackbits(np.array(sample["ends.npy"], np.uint8))
documents = np.split(sample["npy"], np.flatnonzero(bits)[:-1] + 1)
```
"""


def dataset_card(splits: dict[str, str]) -> str:
    """Returns the card of a folder.

    Args:
        splits: for each split that `datasets` should know, the pattern of its tars.
    """
    files = "".join(f'  - split: {name}\n    path: "{path}"\n' for name, path in splits.items())
    return f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n{_TEXT}"
