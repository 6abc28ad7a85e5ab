import doctest

import pytest

from rewarm.schedules import base, builtin

EXAMPLES = [
    example
    for module in (base, builtin)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module)
    if example.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_example_of_a_docstring_gives_the_result_shown(example):
    assert doctest.DocTestRunner().run(example).failed == 0


def test_every_builtin_schedule_has_an_example():
    names = {example.name.rpartition(".")[2] for example in EXAMPLES}
    assert names >= {"NoWarmup", "Rewarm", "Constant", "linear", "cosine"}
