import pytest
from pydantic import ValidationError

from rewarm.model.architecture import PRESETS, Architecture

# config.json of EleutherAI/pythia-410m as published, with the old names of rotary settings.
PYTHIA_410M = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.24.0",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}

# No setting has its default, so that a setting that is not read is noticed.
UNUSUAL = Architecture(
    layers=3,
    hidden=48,
    heads=2,
    ffn=100,
    vocabulary=500,
    positions=96,
    rotary=0.5,
    rotary_base=500.0,
    activation="gelu_new",
    parallel_residual=False,
    attention_bias=False,
    tied=True,
    layer_norm_eps=1e-6,
)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        # By hand: 2 embeddings of 50,304 × 128; a layer has 4 · 128² + 4 · 128 in attention,
        # 2 · 128 · 512 + 640 in the MLP and 4 · 128 in norms, 198,272; the last norm has 2 · 128.
        ("pythia-14m", 12_877_824 + 6 * 198_272 + 256),
        ("pythia-31m", 25_755_648 + 6 * (263_168 + 525_568 + 1024) + 512),
        # As published.
        ("pythia-70m", 70_426_624),
        ("pythia-160m", 162_322_944),
        ("pythia-410m", 405_334_016),
        ("pythia-1b", 1_011_781_632),
        ("pythia-1.4b", 1_414_647_808),
        ("pythia-2.8b", 2_775_208_960),
        ("pythia-6.9b", 6_857_302_016),
        ("pythia-12b", 11_846_072_320),
    ],
)
def test_parameters_are_those_published(preset, parameters):
    assert PRESETS[preset].parameters == parameters


def test_the_list_above_has_every_preset():
    assert len(PRESETS) == 10


def test_410m_without_its_embeddings():
    model = PRESETS["pythia-410m"]
    assert model.parameters - 2 * 50_304 * 1024 == 302_311_424
    assert model.matmul_parameters == 302_311_424 + 50_304 * 1024


def test_flops_per_token():
    assert f"{PRESETS['pythia-410m'].flops_per_token(2048):.4e}" == "2.7269e+09"


def test_a_tied_model_without_attention_bias_by_hand():
    # attention 4 · 48², MLP 2 · 48 · 100 + 148, norms 4 · 48; one matrix of 500 × 48.
    assert UNUSUAL.parameters == 3 * (9216 + 9748 + 192) + 96 + 24_000
    assert UNUSUAL.matmul_parameters == UNUSUAL.parameters  # the shared matrix is used in a matmul
    assert (UNUSUAL.head_size, UNUSUAL.rotary_size, UNUSUAL.inner) == (24, 12, 100)


def test_old_names_of_rotary_settings_are_read():
    assert Architecture.from_hugging_face(PYTHIA_410M) == PRESETS["pythia-410m"].model_copy(
        update={"ffn": 4096}
    )


def test_new_names_take_precedence_over_old_ones():
    config = {**PYTHIA_410M, "rotary_pct": 1.0, "rotary_emb_base": 1}
    config["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 500_000.0,
        "partial_rotary_factor": 0.5,
    }
    model = Architecture.from_hugging_face(config)
    assert (model.rotary, model.rotary_base) == (0.5, 500_000.0)


@pytest.mark.parametrize("architecture", [UNUSUAL, *PRESETS.values()])
def test_a_config_written_and_read_is_the_same_architecture(architecture):
    config = architecture.to_hugging_face()
    read = Architecture.from_hugging_face(config)
    assert read == architecture.model_copy(update={"ffn": architecture.inner})
    assert read.to_hugging_face() == config
    # Old or new names alone are enough.
    for left_out in ({"rope_parameters"}, {"rotary_pct", "rotary_emb_base"}):
        partial = {name: value for name, value in config.items() if name not in left_out}
        assert Architecture.from_hugging_face(partial) == read


def test_a_written_config_equals_the_published_one():
    written = PRESETS["pythia-410m"].to_hugging_face()
    shared = PYTHIA_410M.keys() & written.keys() - {"torch_dtype"}
    assert {name: written[name] for name in shared} == {name: PYTHIA_410M[name] for name in shared}
    assert PYTHIA_410M.keys() - shared == {
        "bos_token_id",
        "eos_token_id",
        "initializer_range",
        "torch_dtype",
        "transformers_version",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; rewarm trains 'gpt_neox'"),
        ({"model_type": None}, "model_type is None"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary scaling 'linear'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rotary scaling 'yarn'"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rotary scaling 'dynamic'"),
        ({"hidden_act": "tanh"}, "activation"),
        ({"hidden_size": 1000}, "hidden 1000 should divide evenly among 16 heads"),
        ({"num_hidden_layers": None}, "layers"),
        ({"num_hidden_layers": 24.5}, "layers"),
        ({"rotary_pct": 0.02}, "rotates 1 dimensions; that should be an even number above 0"),
        ({"rotary_pct": 0.01}, "rotates 0 dimensions; that should be an even number above 0"),
        ({"rotary_pct": 1.5}, "rotary"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Architecture.from_hugging_face({**PYTHIA_410M, **changes})


def test_rotary_scaling_may_be_null():
    for name in ("rope_scaling", "rope_parameters"):
        config = {**PYTHIA_410M, name: None}
        assert Architecture.from_hugging_face(config).rotary == 0.25


def test_an_architecture_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        UNUSUAL.layers = 4
