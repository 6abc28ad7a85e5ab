"""The settings of each section: their bounds, their defaults, and what a section refuses."""

import math

import pytest

from recipes import recipe_of, recipe_problems
from rewarm.model.architecture import PRESETS
from rewarm.recipe.json_schema import recipe_schema
from rewarm.recipe.recipe import Recipe


def test_every_default_is_written_out(thousand_steps):
    settings = recipe_of(thousand_steps).document()
    assert settings["seed"] == 17
    assert settings["data"]["lanes"] == 16
    assert settings["data"]["validation"] == {}
    assert settings["model"] == {
        "base": None,
        "revision": None,
        "preset": "pythia-14m",
        "architecture": None,
        "base_lr": None,
        "fresh": False,
        "tokenizer": None,
        "activation": None,
    }
    assert settings["optimizer"] == {
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip": 1.0,
        "z_loss": 0.0,
        "ema": None,
        "carry": False,
    }
    assert settings["schedule"] == {
        "name": "rewarm",
        "peak_lr": 3e-4,
        "min_lr": 3e-5,
        "preheat": 0,
        "decay": "cosine",
        "start_lr": 0.0,
        "warmup": "100 steps",
    }
    assert settings["every"] == {
        **{"log": 10, "evaluate": 500, "tasks": None, "save": 1000, "norms": None},
    }
    assert (settings["precision"], settings["compile"]) == ("bf16", True)


def test_every_setting_has_help():
    definitions = recipe_schema()["$defs"]
    sections = {
        name: definition
        for name, definition in definitions.items()
        if name.endswith("Settings") or name in ("TrainSet", "ValidationSet", "WeightFrom")
    }
    assert len(sections) == 15
    for name, section in sections.items():
        assert section["description"], name
        for setting, schema in section["properties"].items():
            assert schema["description"], f"{name}.{setting}"
    # A section's help is that of its class.
    assert {name for name, field in Recipe.model_fields.items() if not field.description} == {
        "model",
        "batch",
        "data",
        "schedule",
        "optimizer",
        "loss_scale",
        "parallel",
        "every",
        "tasks",
        "sample",
        "keep",
        "guard",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # model
        (
            "model.preset=pythia-41m",
            "model.preset: no preset named 'pythia-41m'; did you mean 'pythia-410m'? (presets: ",
        ),
        (
            "model={preset: pythia-14m, base: x}",
            "model: should have exactly one of base, preset, architecture; got base and preset",
        ),
        ("model={}", "model: should have exactly one of base, preset, architecture; got none of"),
        (
            "model.revision=main",
            "model: revision, fresh and base_lr need a base; set base, or remove them",
        ),
        (
            "model.fresh=true",
            "model: revision, fresh and base_lr need a base; set base, or remove them",
        ),
        (
            "model={architecture: {layers: 1, hidden: 10, heads: 3}}",
            "model.architecture: hidden 10 should divide evenly among 3 heads",
        ),
        # data
        (
            "data.train.downstream.shards=pipe:cat x",
            "data.train.downstream.shards: should be a folder or a URL with http://, https://, "
            "s3://, gs://, hf://; pipe: is not supported, and commands are never run (got 'pipe:",
        ),
        (
            "data.train.downstream.shards='!cat x'",
            "data.train.downstream.shards: should be a folder or one plain URL (got '!cat x')",
        ),
        (
            "data.train.downstream.shards='https://a/x::s3://b'",
            "data.train.downstream.shards: should be a folder or one plain URL (got 'https:",
        ),
        (
            "data.train.downstream.weight=0",
            "data.train.downstream.weight: should be above 0; to give a corpus no weight, remove",
        ),
        (
            "data.train.downstream.weight=[{from: 10%, weight: 1}]",
            "data.train.downstream.weight: should start with `from: 0`, and each `from` should be",
        ),
        (
            "data.train.downstream.weight=[{from: 0, weight: 1}, {from: 0, weight: 2}]",
            "data.train.downstream.weight: should start with `from: 0`, and each `from` should be",
        ),
        ("data.train.downstream.weight=[]", "data.train.downstream.weight: should start with `fro"),
        (
            "model={base: x, fresh: true, tokenizer: y, base_lr: 1e-3}",
            "model: tokenizer extends the vocabulary of a base's weights, and with fresh these are",
        ),
        # tasks
        (
            "every.tasks=100",
            "every.tasks: is 100 steps, and no task is named; set tasks.names, such as [lambada_",
        ),
        # loss scale
        (
            "loss_scale.initial=1000",
            "loss_scale.initial: should be a power of 2, so that scaling is exact (got 1000)",
        ),
        (
            "loss_scale={initial: 2, minimum: 4}",
            "loss_scale: initial should be at least the minimum of 4, got 2",
        ),
    ],
)
def test_refused(thousand_steps, override, message):
    (problem,) = recipe_problems(thousand_steps, override)
    assert f": {message}" in problem


def test_architecture_is_explicit_unless_the_model_has_a_base(thousand_steps):
    def explicit_architecture(*overrides):
        return recipe_of(thousand_steps, *overrides).model.explicit_architecture

    assert explicit_architecture() is PRESETS["pythia-14m"]
    assert (
        explicit_architecture("model={architecture: {layers: 1, hidden: 64, heads: 2}}").layers == 1
    )
    assert explicit_architecture("model={base: a/b}", "data.context=10k") is None
    fresh = recipe_of(thousand_steps, "model={base: a/b, revision: main, fresh: true}")
    assert fresh.model.fresh


def test_weight_is_written_back_as_it_was_given(thousand_steps):
    def written(weight):
        recipe = recipe_of(
            thousand_steps,
            "data.train.upstream.weight=5%",
            f"data.train.downstream.weight={weight}",
        )
        return recipe.document()["data"]["train"]["downstream"]["weight"]

    assert math.isclose(written("95%"), 0.95)
    assert written("[{from: 0, weight: 0.95}, {from: 50 steps, weight: 95%}]") == [
        {"from": 0, "weight": 0.95},
        {"from": "50 steps", "weight": 0.95},
    ]


@pytest.mark.parametrize("microbatch", ["null", "most"])
def test_microbatch_is_a_number_or_auto(thousand_steps, microbatch):
    problems = recipe_problems(thousand_steps, f"batch.microbatch={microbatch}")
    assert any("batch.microbatch: should be a number of sequences, or auto" in p for p in problems)


def test_automatic_microbatch_is_none_until_resolved(thousand_steps):
    recipe = recipe_of(thousand_steps, "batch.microbatch=auto")
    assert recipe.batch.microbatch is None
    assert recipe.document()["batch"]["microbatch"] == "auto"
