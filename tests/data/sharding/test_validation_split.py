import hashlib

import pytest

from rewarm.data.sharding.validation_split import SplitInputChangedError, ValidationSplit

DIGESTS = [hashlib.sha256(str(number).encode()).digest() for number in range(20)]


def limit_of(digests):
    split = ValidationSplit(1e-9)
    for digest in digests:
        assert split.folder_of(digest) == "train"
    return split.limit_for_empty_folder()


def test_a_limit_holds_out_the_document_with_the_lowest_hash():
    limit = limit_of(DIGESTS)
    split = ValidationSplit(1e-9, limit)
    held_out = [digest for digest in DIGESTS if split.folder_of(digest) == "val"]
    split.check_input()
    assert held_out == [min(DIGESTS)]
    assert split.limit_for_empty_folder() is None


@pytest.mark.parametrize(
    "digests", [[*DIGESTS, b"1" * 32], DIGESTS[:-1], [*DIGESTS[:-1], b"1" * 32], DIGESTS[::-1]]
)
def test_a_limit_holds_for_the_same_input_only(digests):
    split = ValidationSplit(1e-9, limit_of(DIGESTS))
    with pytest.raises(SplitInputChangedError):  # noqa: PT012 - at the first, or at the end
        for digest in digests:
            split.folder_of(digest)
        split.check_input()
