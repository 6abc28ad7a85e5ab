"""Recipes from text, with overrides; the problems of an invalid one."""

import pytest

from rewarm.errors import RecipeError
from rewarm.recipe.recipe import Recipe, validate_recipe
from rewarm.recipe.yaml_document import YamlDocument

FULL_RECIPE = """\
# Every setting that is valid together with an architecture.
run: runs/full
seed: 17
tokens: 100M
model:
  architecture:
    layers: 6
    hidden: 128
    heads: 4
    ffn: 512
    vocabulary: 50304
    positions: 2048
    rotary: 0.25
    rotary_base: 10000
    activation: gelu
    parallel_residual: true
    attention_bias: true
    tied: false
    layer_norm_eps: 1e-5
data:
  context: 1000
  lanes: 16
  train:
    new:
      shards: data/new/train
      weight: 95%
    old: {shards: data/old/train, weight: 0.05}
  validation:
    new:
      shards: data/new/val
      tokens: 20M
    old: {shards: data/old/val}
batch:
  tokens: 100_000
  microbatch: 10
schedule:
  name: rewarm
  start_lr: 3e-5
  peak_lr: 3e-4
  min_lr: 3e-5
  warmup: 10 steps
  decay: clipped-cosine
optimizer:
  betas: [0.9, 0.95]
  eps: 1e-8
  weight_decay: 0.1
  clip: 1.0
  carry: false
precision: fp32
compile: false
every:
  log: 10
  evaluate: 500
  save: null
"""


def recipe_of(text: str, *overrides: str) -> Recipe:
    document = YamlDocument(text, "r.yaml")
    for override in overrides:
        document.apply_override(override)
    return validate_recipe(document)


def recipe_problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as raised:
        recipe_of(text, *overrides)
    return raised.value.problems
