import gzip
import io
import lzma
import tarfile
import tracemalloc
import zipfile

import pytest
from text_inputs import lines, parquet_of, tar_of, zip_of

from rewarm.data.inputs.document_readers import ReadOptions, find_input_files, read_documents
from rewarm.errors import DataError

TEXTS = ["one", "zwei", "три"]
MEMBERS = {f"{number}.txt": text.encode() for number, text in enumerate(TEXTS)}
END = bytes(1024)


def read(path, **options):
    """The texts, and the reason for each member that is skipped, by its name."""
    skipped = {}
    documents = read_documents(
        find_input_files([path]).files,
        "text",
        on_skipped=lambda member: skipped.update(
            {member.location.removeprefix(f"{path}:"): member.reason}
        ),
        options=ReadOptions(**options),
    )
    return [document.content for document in documents], skipped


def header(name: str, size: int, *, kind: bytes = b"0") -> bytes:
    """A tar header; sizes that do not fit into octal digits are written in base 256."""
    data = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    if 0 <= size < 8**11:
        data[124:136] = b"%011o\0" % size
    else:
        data[124:136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(
            11, "big", signed=size < 0
        )
    data[156:157] = kind
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def test_every_truncation_of_a_tar_is_refused(tmp_path):
    """Up to the second block of zeros after the last member; what follows is padding."""
    whole = tar_of(MEMBERS)
    path = tmp_path / "a.tar"
    path.write_bytes(whole)
    assert read(path)[0] == TEXTS
    needed = len(TEXTS) * 1024 + len(END)
    for size in [*range(0, needed, 64), needed - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.tar(:\d\.txt)?: "):
            read(path)
    path.write_bytes(whole[:needed])
    assert read(path)[0] == TEXTS


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.xz", "A.TAR.GZ"])
def test_a_compressed_tar_is_read_whole_or_refused(tmp_path, name):
    pack = lzma.compress if "xz" in name else gzip.compress
    path = tmp_path / name
    path.write_bytes(pack(tar_of(MEMBERS)))
    assert read(path)[0] == TEXTS
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="truncated"):
        read(path)
    path.write_bytes(pack(tar_of(MEMBERS)[:2048]))  # a truncated tar that is packed whole
    with pytest.raises(DataError, match="its end-of-archive of 1,024 zero bytes is missing"):
        read(path)


def test_damage_between_members_is_not_the_end(tmp_path):
    data = bytearray(tar_of(MEMBERS))
    data[1024] ^= 1  # the name in the second header: its checksum is wrong
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(DataError, match="a damaged header at byte 1,024"):
        read(path)
    path.write_bytes(tar_of(MEMBERS) + tar_of(MEMBERS))
    with pytest.raises(DataError, match=r"several tars in one file: another archive"):
        read(path)
    path.write_bytes(tar_of(MEMBERS) + bytes(1 << 23))
    with pytest.raises(DataError, match="a download or copy that was not completed"):
        read(path)


def test_members_of_a_sample_are_one_document(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(
        tar_of(
            {
                "a/0.json": b'{"url": "x"}',  # before and after its text
                "a/0.txt": b"one",
                "a/1.txt": b"two",
                "a/1.json": lines("metadata"),
                "a/1.jpg": b"\xff\xd8",
                "a/2.json": lines("three"),
                "b/0.json": lines("four"),  # another sample: its folder is another
                "b/1.json": lines("five", "six"),  # lines of JSON
                "b/2.seg.txt": b"seven",
            }
        )
    )
    texts, skipped = read(path)
    assert texts == ["one", "two", "three", "four", "five", "six", "seven"]
    metadata = "metadata: its sample has a .txt"
    assert skipped == {
        "a/0.json": metadata,
        "a/1.json": metadata,
        "a/1.jpg": "its ending is not read: .jpg",
    }


def test_members_of_a_sample_that_are_apart(tmp_path):
    """After all texts a .json is still metadata; before them it was read as a document."""
    path = tmp_path / "a.tar"
    texts = {"0.txt": b"one", "1.txt": b"two"}
    metadata = {"0.json": lines("x"), "1.json": lines("y")}
    path.write_bytes(tar_of(texts | metadata))
    assert read(path)[0] == ["one", "two"]
    path.write_bytes(tar_of(metadata | texts))
    with pytest.raises(DataError, match=r"0\.txt: its sample's \.json was read .* side by side"):
        read(path)


def test_only_the_json_of_a_sample_is_metadata(tmp_path):
    """After the first dot all is the ending, as in WebDataset: 0001.json is not json."""
    path = tmp_path / "a.tar"
    path.write_bytes(
        tar_of(
            {
                "v1.0001.json": lines("one"),
                "v1.0002.json": lines("two"),
                "v1.readme.txt": b"three",
                "v1.0003.json.gz": gzip.compress(lines("four"), mtime=0),
                "v1.0004.json": lines("five"),
                "./w.JSON.gz": gzip.compress(lines("x"), mtime=0),
                "w.TXT": b"six",
            }
        )
    )
    texts, skipped = read(path)
    assert texts == ["one", "two", "three", "four", "five", "six"]
    assert skipped == {"./w.JSON.gz": "metadata: its sample has a .txt"}


def test_one_sample_of_many_texts_is_not_held_in_memory(tmp_path):
    data = lines("x" * 200_000)
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of({f"v1.{number:04d}.json": data for number in range(40)}))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_documents([path], "text")) == 40
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("first", "second"), [("a.txt", "a.txt"), ("a.json", "./a.JSON.gz")])
def test_a_member_that_is_there_twice_is_refused(tmp_path, first, second):
    path = tmp_path / "a.tar"
    members = [(name, lines("x")) for name in (first, "b.txt", second)]
    path.write_bytes(b"".join(tar_of({name: data})[:1024] for name, data in members) + END)
    with pytest.raises(DataError, match="a second member of this name"):
        read(path)


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_texts_in_all_endings_are_read_and_other_members_are_listed(tmp_path, pack):
    path = tmp_path / f"a.{'tar' if pack is tar_of else 'zip'}"
    path.write_bytes(
        pack(
            {
                "0.jsonl": lines("one", "two"),
                "1.JSONL.GZ": gzip.compress(lines("three"), mtime=0),
                "2.txt.xz": lzma.compress(b"four"),
                "3.ndjson": lines("five"),
                "4.txt": b"\xef\xbb\xbfsix",
                "._4.txt": b"x",
                "LICENSE.txt": b"x",
                "5.parquet": parquet_of("x"),
                "6.md": b"x",
            }
        )
    )
    texts, skipped = read(path)
    assert texts == ["one", "two", "three", "four", "five", "six"]
    assert skipped == {
        "._4.txt": "hidden",
        "LICENSE.txt": "a licence or checksums, by its name",
        "5.parquet": ".parquet is not read inside an archive; unpack it",
        "6.md": "its ending is not read: .md",
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header("a.txt", 2**33 - 1) + bytes(512) + END, r"a\.txt: truncated: 8,589,933,055 of"),
        (header("a.txt", 2**60) + bytes(512) + END, r"a\.txt: truncated: 1,152,921,504,606,845"),
        (header("a.txt", -1024) + bytes(512) + END, r"a\.txt: damaged: a size of -1,024 bytes"),
        (header("a.jpg", 2**33 - 1) + bytes(512) + END, "unexpected end of data"),
        (header("x", 2**33 - 1, kind=b"x") + bytes(512) + END, "a header of 8,589,934,592 bytes"),
        (header("x", -512, kind=b"L") + bytes(512) + END, "a header of -512 bytes"),
        (header("x", 1, kind=b"L") * 2000 + END, "a tar that can be read"),
    ],
)
def test_headers_cannot_claim_more_than_there_is(tmp_path, data, message):
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_member_beyond_the_limit_is_refused_until_it_is_raised(tmp_path):
    for name, data in (("a.tar", tar_of({"0.txt": b"x" * 2000})), ("a.zip", zip_of(MEMBERS))):
        path = tmp_path / name
        path.write_bytes(data)
        limit = 1000 if name == "a.tar" else 3
        with pytest.raises(DataError, match=rf"txt: a document of more than {limit:,} bytes"):
            read(path, max_document_bytes=limit)
        assert read(path, max_document_bytes=2000)[0]


def test_every_truncation_of_a_zip_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    whole = zip_of(MEMBERS)
    path.write_bytes(whole)
    assert read(path)[0] == TEXTS
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.zip"):
            read(path)


def test_a_zip_that_lists_fewer_members_than_it_has_is_refused(tmp_path):
    data = bytearray(zip_of(MEMBERS))
    data[-10] ^= 1  # the size of its directory, of 22 bytes at the end
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.zip"):
        read(path)


def test_a_zip_with_a_damaged_member_is_refused(tmp_path):
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("0.txt", "the text")
    path = tmp_path / "a.zip"
    path.write_bytes(file.getvalue().replace(b"the text", b"the test"))
    with pytest.raises(DataError, match="Bad CRC-32"):
        read(path)
