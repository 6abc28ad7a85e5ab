import shutil

import pytest
from braceexpand import braceexpand
from http_folder import FaultyServer, serve
from shard_folders import flip_bit

from rewarm.data.corpus import Corpus
from rewarm.data.shard_format import read_shard_index
from rewarm.data.shard_source import ShardSource, count_names
from rewarm.download_cache import DownloadCache
from rewarm.errors import DataError, RecipeError


@pytest.fixture
def url(corpora, tmp_path, monkeypatch):
    """Returns the URL of a copy of the corpora, with a cache for this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("rewarm.remote_storage._FIRST_WAIT_S", 0.01)
    shutil.copytree(corpora, tmp_path / "served")
    with serve(tmp_path / "served") as url:
        yield url


def open_source(url, **settings):
    return ShardSource(f"{url}/upstream/train", attempts=2, timeout=1.0, **settings)


def test_shards_at_a_url_give_the_same_blocks(url, corpora):
    local = Corpus(
        "a", ShardSource(str(corpora / "upstream" / "train")), context=16, seed=1, lanes=2
    )
    remote = Corpus("a", open_source(url), context=16, seed=1, lanes=2)
    assert FaultyServer.requests == ["index.json"]
    for n in range(0, local.blocks_per_epoch, 7):
        assert remote.block(n).tolist() == local.block(n).tolist()
    tars = [name for name in FaultyServer.requests if name.endswith(".tar")]
    assert sorted(tars) == sorted({*tars})  # each is downloaded once


@pytest.mark.parametrize("fault", ["500", "cut", "stall"])
def test_a_failed_download_of_a_shard_is_retried(url, fault):
    FaultyServer.faults["00001.tar"] = [fault]
    source = open_source(url)
    assert len(source.open_shard(1)) == source.index.shards[1].documents
    assert FaultyServer.requests.count("00001.tar") == 2


def test_a_shard_that_differs_from_the_index_is_refused(url, tmp_path):
    flip_bit(tmp_path / "served" / "upstream" / "train" / "00001.tar")
    source = open_source(url)
    sha256 = source.index.shards[1].sha256
    with pytest.raises(DataError, match=rf"00001\.tar: .* expected {sha256[:12]}"):
        source.open_shard(1)


def test_the_cache_stays_below_its_size(url, tmp_path):
    source = open_source(url, cache_bytes=30_000)
    for number, shard_info in enumerate(source.index.shards[:6]):
        source.open_shard(number)
        tars = list((tmp_path / "cache").rglob("*.tar"))
        total = sum(path.stat().st_size for path in tars)
        assert shard_info.name in {path.name for path in tars}
        assert total <= max(30_000, shard_info.bytes)


def test_an_open_shard_is_not_evicted_by_another_run(url, tmp_path):
    first, second = open_source(url, cache_bytes=1), open_source(url, cache_bytes=1)
    shard = first.open_shard(0)
    for number in (1, 2):
        assert len(second.open_shard(number)) == second.index.shards[number].documents
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*.tar")) == [
        "00000.tar",
        "00002.tar",
    ]
    assert sum(map(len, shard)) == first.index.shards[0].tokens


def damage_whole_shard(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("damage", [flip_bit, damage_whole_shard])
def test_a_damaged_copy_in_the_cache_is_downloaded_again(url, tmp_path, caplog, verify, damage):
    source = open_source(url)
    expected = [tokens.tolist() for tokens in source.open_shard(1)]
    (copy,) = (tmp_path / "cache").rglob("00001.tar")
    damage(copy)
    shard = source.open_shard(1, verify=verify)
    if verify or damage is damage_whole_shard:
        assert [tokens.tolist() for tokens in shard] == expected
        assert FaultyServer.requests.count("00001.tar") == 2
        assert f"{copy}: " in caplog.text
        assert "a copy in the download cache; a run that opens it downloads it again" in caplog.text


def test_a_disk_that_damages_each_copy_is_reported(url, tmp_path, monkeypatch):
    open_file = DownloadCache.open

    def damaged(cache, path, *arguments):
        descriptor = open_file(cache, path, *arguments)
        flip_bit(path)
        return descriptor

    monkeypatch.setattr(DownloadCache, "open", damaged)
    with pytest.raises(DataError, match=r"00001\.tar: changed since .* check the disk") as error:
        open_source(url).open_shard(1)
    assert str(error.value).startswith(str(tmp_path / "cache"))
    assert "rewarm shard" not in str(error.value)
    assert FaultyServer.requests.count("00001.tar") == 2


@pytest.mark.parametrize("content", ["", "{", "another"])
def test_a_damaged_or_old_copy_of_the_tokenizer_is_downloaded_again(url, tmp_path, content, caplog):
    source = open_source(url)
    path = source.tokenizer_folder() / "tokenizer.json"
    expected = path.read_text()
    another = expected.replace("<|endoftext|>", "[STOP]")
    path.write_text(another if content == "another" else content)
    source.tokenizer_folder()
    assert path.read_text() == expected
    assert f"{path}: not the tokenizer of the shards" in caplog.text
    path.unlink()
    (tmp_path / "served" / "upstream" / "train" / "tokenizer.json").write_text(another)
    with pytest.raises(DataError, match=r"tokenizer\.json: not the tokenizer of the index\.json"):
        source.tokenizer_folder()


def test_training_on_shards_at_a_url_equals_training_on_local_ones(url, recipe_file, tmp_path):
    from rewarm.recipe.recipe import load_recipe
    from rewarm.training.loop import train

    local = train(load_recipe(recipe_file, [f"run={tmp_path}/local", "tokens=2048"]))
    remote = train(
        load_recipe(recipe_file, [
            f"run={tmp_path}/remote", "tokens=2048",
            f"data.train.upstream.shards={url}/upstream/train",
            f"data.train.downstream.shards={url}/downstream/train",
            f"data.validation.upstream.shards={url}/upstream/val",
        ])
    )  # fmt: skip
    for name in ("model.safetensors", "progress.json", "tokenizer.json"):
        assert (local / name).read_bytes() == (remote / name).read_bytes()


def test_braces_and_wildcards_select_shards(corpora):
    folder = corpora / "upstream" / "train"
    names = [shard.name for shard in ShardSource(f"{folder}/{{00000..00002}}.tar").index.shards]
    assert names == ["00000.tar", "00001.tar", "00002.tar"]
    assert ShardSource(f"{folder}/*.tar").index == read_shard_index(folder)
    with pytest.raises(DataError, match=r"no shard 00099\.tar in its index"):
        ShardSource(f"{folder}/{{00000,00099}}.tar")


@pytest.mark.parametrize(
    "pattern",
    [
        *("a", "{a}", "{a,b}x{c,d,}", "{0..9}", "{00..20..3}", "{5..-5}", "{a..e}", "{e..a..2}"),
        *("{{a,b}{c,d},e}f", "{a{0..3},{x,y}z}", "a,b", r"\{a,b\}", "{1..2,3}", "x{a,{b,{c,d}}}"),
    ],
)
def test_names_are_counted_without_expanding_them(pattern):
    assert count_names(pattern) == len(list(braceexpand(pattern)))


@pytest.mark.parametrize(
    ("pattern", "number"),
    [
        ("{a,b}" * 24, "16,777,216"),
        ("{" + "{a,b}" * 24 + ",c}", "16,777,217"),
        ("{0..999999999999}", "1,000,000,000,000"),
        ("{a,b}" * 900, "more than 10^15"),
    ],
)
def test_braces_that_stand_for_more_names_than_shards_are_refused_at_once(corpora, pattern, number):
    with pytest.raises(
        DataError, match=r"its braces stand for .* names, and .* \d+ shards"
    ) as error:
        ShardSource(f"{corpora}/upstream/train/{pattern}.tar")
    assert number in str(error.value)


@pytest.mark.parametrize(
    "location",
    ["pipe:cat /etc/passwd", "pipe://x", "file:///etc", "filecache::http://x", "!ls", "ftp://x/y"],
)
def test_locations_that_could_run_a_command_are_refused_by_the_recipe(recipe_file, location):
    from rewarm.recipe.recipe import load_recipe

    with pytest.raises(RecipeError, match=r"data\.train\.upstream\.shards"):
        load_recipe(recipe_file, [f"data.train.upstream.shards={location!r}"])
    if "://" in location and "::" not in location:
        with pytest.raises(DataError, match="cannot be read"):
            ShardSource(location)
