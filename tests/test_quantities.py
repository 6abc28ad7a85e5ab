import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm import Span
from rewarm.quantities import (
    Budget,
    RateOfBase,
    as_written,
    format_bytes,
    format_count,
    format_number,
    format_seconds,
    parse_count,
    parse_duration,
    parse_share,
    perplexity,
)
from rewarm.recipe.recipe import validate_recipe
from rewarm.recipe.yaml_document import YamlDocument

BUDGET = Budget(steps=1000, tokens_per_step=100_000)


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("10B", 10_000_000_000),
        ("2_097_152", 2_097_152),
        ("1.5M", 1_500_000),
        ("0.25T", 250_000_000_000),
        ("1e9", 1_000_000_000),
        ("1.1e1", 11),
        ("1e-3k", 1),
        (" 20 k ", 20_000),
        ("0", 0),
        (1e9, 1_000_000_000),
        (-3, -3),  # each setting decides whether it may be negative
    ],
)
def test_counts_are_parsed(written, count):
    assert parse_count(written) == count
    assert isinstance(parse_count(written), int)


def test_counts_are_exact_beyond_the_precision_of_floats():
    assert parse_count("9_007_199_254_740_993") == 9_007_199_254_740_993
    assert parse_count("9.007199254740993e15") == 9_007_199_254_740_993


@pytest.mark.parametrize(
    "written",
    [
        *("1.5", "0.1k1", "10 apples", "", "k", "-5", "1e", "1e999", "٣", "9" * 5000),
        *(True, None, 1.5, float("nan"), float("inf"), [1]),
    ],
    ids=repr,
)
def test_invalid_counts_are_refused(written):
    with pytest.raises(ValueError, match="should be a count, such as 2_097_152, 20M, 10B or 1e9"):
        parse_count(written)


@pytest.mark.parametrize(
    ("written", "share"),
    [("5%", 0.05), (" 0.5 % ", 0.005), ("100%", 1), ("0.05", 0.05), (0.3, 0.3), (2, 2)],
)
def test_shares_are_parsed(written, share):
    assert parse_share(written) == share


@pytest.mark.parametrize(
    "written",
    [
        "5 of 100",
        "-5%",
        "-0.05",
        "5e-2",
        "1.2.3%",
        "%",
        ".%",
        "",
        True,
        None,
        "9" * 400 + "%",
        10**400,
    ],
    ids=lambda written: repr(written)[:9],
)
def test_invalid_shares_are_refused(written):
    with pytest.raises(ValueError, match="should be a number, such as"):
        parse_share(written)


@pytest.mark.parametrize(
    ("written", "fraction"),
    [
        (0.01, 0.01),
        (0, 0),
        ("1%", 0.01),
        ("3M tokens", 0.03),
        ("1 token", 1e-8),
        ("500 steps", 0.5),
        ("1 step", 0.001),
        ("0 steps", 0),
        ("2_000 steps", 2),  # longer than the run; the setting's bounds refuse it
    ],
)
def test_spans_are_resolved_against_the_budget(written, fraction):
    span = Span(written, BUDGET)
    assert span == fraction
    assert span.written == written
    assert Span(span, BUDGET).written == written


@pytest.mark.parametrize("written", ["-5", "5 apples", "500steps", "3B", "", True, None])
def test_invalid_spans_are_refused(written):
    with pytest.raises(ValueError, match="should be a share of the run"):
        Span(written, BUDGET)


@pytest.mark.parametrize("written", ["many steps", "-1 steps", "1.5 tokens", "9" * 400 + " steps"])
def test_spans_in_steps_or_tokens_need_a_count(written):
    with pytest.raises(ValueError, match="should be a count"):
        Span(written, BUDGET)


def test_a_span_in_steps_needs_a_budget():
    with pytest.raises(ValueError, match="cannot be resolved without a valid budget"):
        Span("500 steps")


@pytest.mark.parametrize(
    ("written", "fraction"),
    [
        ("0.5%", 0.005),
        ("0.1", 0.1),
        ("10M tokens", 0.1),
        ("1.5M tokens", 0.015),
        ("9 steps", 0.009),
    ],
)
def test_a_span_is_saved_as_it_was_written(thousand_steps, written, fraction):
    recipe = validate_recipe(YamlDocument(thousand_steps.replace("100 steps", written), "r.yaml"))
    from_yaml = validate_recipe(YamlDocument(recipe.to_yaml(), "saved.yaml"))
    from_json = validate_recipe(YamlDocument(recipe.model_dump_json(), "r.json"))
    for copy in (recipe, from_yaml, from_json):
        assert copy.schedule.warmup == fraction
        assert str(copy.schedule.warmup.written) == written
    assert json.loads(recipe.model_dump_json())["schedule"]["warmup"] in (written, fraction)


def test_a_span_in_tokens_keeps_its_length_when_the_budget_is_extended(thousand_steps):
    text = thousand_steps.replace("100 steps", "10M tokens")
    short = validate_recipe(YamlDocument(text, "r.yaml"))
    extended = YamlDocument(short.to_yaml(), "r.yaml")
    extended.apply_override("tokens=200M")
    long = validate_recipe(extended)
    assert (short.schedule.warmup, long.schedule.warmup) == (0.1, 0.05)
    assert short.lr(100) == long.lr(100) == 3e-4  # 10M tokens are step 100 of either


@given(st.integers(min_value=0, max_value=10**18))
def test_a_count_may_be_grouped_by_underscores(count):
    assert parse_count(str(count)) == parse_count(f"{count:_}") == count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (512, "512"),
        (9_999, "9,999"),
        (25_000, "25k"),
        (2_097_152, "2.1M"),
        (296_859_205_632, "296.86B"),
        (1e13, "10T"),
        (-2_097_152, "-2.1M"),
    ],
)
def test_counts_are_formatted(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("3h55m", 14_100), ("90s", 90), ("2d", 172_800), (" 1h30m10s ", 5410), ("1d1s", 86_401)],
)
def test_durations_are_parsed(written, seconds):
    assert parse_duration(written) == seconds


@pytest.mark.parametrize("written", ["", "90", "0s", "1.5h", "10m1h", "-5m", "1w"])
def test_invalid_durations_are_refused(written):
    with pytest.raises(ValueError, match="should be a duration, such as 3h55m"):
        parse_duration(written)


def test_a_rate_of_the_base_is_a_number_with_its_factor():
    rate = RateOfBase(5, 3e-5)
    assert (rate, rate.factor, rate.base_lr) == (5 * 3e-5, 5, 3e-5)


def test_a_default_as_written_is_the_text_itself():
    assert as_written("1 token") == "1 token"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05341, "0.0534"), (62.24, "62.2"), (99.96, "100"), (4290.7, "4,290.7"), (0, "0")],
)
def test_numbers_are_formatted(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(512, "512 B"), (999_999, "999,999 B"), (4_860_000_000, "4.86 GB"), (10**12, "1.00 TB")],
)
def test_bytes_are_formatted(count, text):
    assert format_bytes(count) == text


def test_formatting_seconds():
    assert format_seconds(0.00768) == "7.7 ms"
    assert format_seconds(1234.567) == "1,234.57 s"


def test_perplexity_is_the_exponential_of_the_loss_or_infinite():
    assert perplexity(0) == 1
    assert perplexity(math.log(50)) == pytest.approx(50)
    assert perplexity(1e4) == math.inf
