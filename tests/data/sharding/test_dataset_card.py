import gc

import numpy as np
import pytest
import yaml
from shard_folders import documents_of
from text_corpora import write_texts

from rewarm.data.sharding.dataset_card import dataset_card
from rewarm.data.sharding.shard_writer import write_shards
from rewarm.data.tokenizer import load_tokenizer


@pytest.fixture
def folder(tmp_path, tokenizer_json):
    text = write_texts(tmp_path / "text.jsonl", "upstream", documents=60)
    tokenizer = load_tokenizer(str(tokenizer_json))
    write_shards([text], tmp_path / "out", tokenizer, validation=0.2, shard_tokens=800)
    return tmp_path / "out"


def test_the_cards_of_written_folders_name_their_tars(folder):
    for path in (folder, folder / "train", folder / "val"):
        header = yaml.safe_load((path / "README.md").read_text().split("---\n")[1])
        (config,) = header["configs"]
        for files in config["data_files"]:
            tars = list(path.glob(files["path"]))
            assert tars
            assert {tar.suffix for tar in tars} == {".tar"}
    card = dataset_card({"train": "train/*.tar", "validation": "val/*.tar"})
    assert (folder / "README.md").read_text() == card


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of datasets, which leaves files open
def test_datasets_loads_the_tars_of_a_folder(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    for split, name in (("train", "train"), ("validation", "val")):
        documents = []
        for sample in loaded[split]:
            bits = np.unpackbits(np.array(sample["ends.npy"], np.uint8))
            documents += np.split(np.array(sample["npy"]), np.flatnonzero(bits)[:-1] + 1)
        assert all(map(np.array_equal, documents, documents_of(folder / name)))
        assert len(documents) == len(documents_of(folder / name))
    gc.collect()
