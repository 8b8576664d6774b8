"""Hugging Face folders: transformers and we compute the same from what either has written."""

import dataclasses
import importlib
import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import pgjax
from pgjax.networks.families import family_of, model_of
from pgjax.networks.pretrained import load_pretrained, save_pretrained

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "num_key_value_heads": 2,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 40}
CASES = {
    "gpt2": ("GPT2", {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 20}),
    "gpt2-untied": (
        "GPT2",
        {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20, "n_inner": 24}
        | {"tie_word_embeddings": False, "activation_function": "relu", "layer_norm_epsilon": 0.1},
    ),
    "llama": ("Llama", SIZES),
    "llama-tied": (
        "Llama",
        SIZES
        | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"}
        | {"head_dim": 12, "max_position_embeddings": 80}
        | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 100.0} | LLAMA3},
    ),
    "qwen2": ("Qwen2", SIZES | {"tie_word_embeddings": True, "rope_theta": 50.0, "rms_norm_eps": 0.1}),
    "qwen3": ("Qwen3", SIZES | {"head_dim": 6}),
}
TOKENS = np.random.default_rng(0).integers(0, 32, (3, 9))
MASK = np.arange(9) >= np.array([[0], [3], [8]])


@pytest.fixture(scope="module")
def reference():
    """(case, folder) -> the model of transformers with weights that all matter, which it has written there."""
    import torch
    import transformers

    def make(case, folder, **how):
        kind, fields = CASES[case]
        ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
        config = getattr(transformers, f"{kind}Config")(**fields | ids)
        architecture = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
        model = getattr(transformers, architecture)(config).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                scales = weight.ndim == 1 and name.endswith("weight")
                weight.copy_(scales + 0.2 * torch.randn(weight.shape, generator=generator))
        model.save_pretrained(folder, **how)
        return model

    return make


@pytest.fixture(scope="module", params=CASES)
def case(request, reference, tmp_path_factory):
    """A model of transformers, the folder it is in, and what we read from that."""
    folder = tmp_path_factory.mktemp(request.param)
    model = reference(request.param, folder)
    return SimpleNamespace(name=request.param, reference=model, folder=folder, loaded=load_pretrained(folder))


def reference_logits(model, tokens, mask=None):
    import torch

    with torch.no_grad():
        if mask is None:
            return model(torch.tensor(tokens)).logits.numpy()
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        mask, positions = torch.tensor(mask.astype(int)), torch.tensor(positions)
        return model(torch.tensor(tokens), attention_mask=mask, position_ids=positions).logits.numpy()


def test_logits_are_those_of_transformers(case):
    model, params = case.loaded
    logits = jax.jit(model.logits)
    for mask in (None, MASK):
        expected = reference_logits(case.reference, TOKENS, mask)
        real = slice(None) if mask is None else mask
        np.testing.assert_allclose(logits(params, TOKENS, mask)[real], expected[real], rtol=1e-4, atol=1e-5)


def test_transformers_reads_what_we_write(case, tmp_path):
    import torch
    import transformers

    save_pretrained(tmp_path, *case.loaded, family=case.name.split("-")[0], copy_from=case.folder)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is type(case.reference)
    assert not any(info.values()), info
    weights = model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in case.reference.state_dict().items())
    for mask in (None, MASK):
        expected, logits = (reference_logits(each, TOKENS, mask) for each in (case.reference, model))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)


def test_we_read_what_we_write(case, tmp_path):
    save_pretrained(tmp_path / "new" / "folder", *case.loaded)
    model, params = load_pretrained(tmp_path / "new" / "folder")
    assert model == case.loaded[0]
    assert jax.tree.structure(params) == jax.tree.structure(case.loaded[1])
    jax.tree.map(np.testing.assert_array_equal, params, case.loaded[1])
    assert {file.name for file in (tmp_path / "new" / "folder").iterdir()} == {"config.json", "model.safetensors"}


def test_weights_in_several_files_are_those_in_one(reference, tmp_path):
    reference("llama", tmp_path / "one")
    reference("llama", tmp_path / "several", max_shard_size="3KB")
    shards = sorted((tmp_path / "several").glob("model-*.safetensors"))
    assert len(shards) > 2
    one, several = (load_pretrained(tmp_path / name)[1] for name in ("one", "several"))
    jax.tree.map(np.testing.assert_array_equal, several, one)
    shards[1].unlink()
    with pytest.raises(pgjax.InputError, match=rf"several lacks {shards[1].name} of the {len(shards)} files"):
        load_pretrained(tmp_path / "several")
    shards[1].write_bytes(shards[0].read_bytes()[:-5])
    with pytest.raises(pgjax.InputError, match=rf"{shards[1].name} is damaged"):
        load_pretrained(tmp_path / "several")


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_weights_of_half_precision(reference, tmp_path, stored):
    import torch
    import transformers

    half = reference("qwen2", tmp_path / "full").to(getattr(torch, stored))
    half.save_pretrained(tmp_path / "half")
    expected = half.model.layers[1].mlp.down_proj.weight.detach().float().numpy().T
    for kept in ("float32", "bfloat16"):
        model, params = load_pretrained(tmp_path / "half", dtype="bfloat16", param_dtype=kept)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(kept)}
        np.testing.assert_array_equal(params["blocks"]["down"]["kernel"][1], jnp.asarray(expected, kept))
    assert (model.dtype, model.param_dtype) == ("bfloat16", "bfloat16")
    save_pretrained(tmp_path / "again", model, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert {weight.dtype for weight in again.values()} == {torch.bfloat16}
    for name, weight in half.state_dict().items():
        assert torch.equal(again[name], weight.to(torch.bfloat16))


def test_files_as_older_versions_wrote_them(reference, tmp_path):
    """Without the name of what holds the tensors, with constants among them, with a head although it is tied."""
    gpt2 = reference("gpt2", tmp_path)
    expected = load_pretrained(tmp_path)[1]
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    weights |= {"h.0.attn.bias": np.ones((1, 1, 20, 20), np.uint8), "h.1.attn.masked_bias": np.float32([-1e4])}
    weights["lm_head.weight"] = gpt2.lm_head.weight.detach().numpy()
    save_file(weights, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(tmp_path)[1], expected)
    save_file(weights | {"lm_head.weight": weights["lm_head.weight"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(pgjax.InputError, match=r"lm_head.weight is not wte.weight.*tie_word_embeddings = false"):
        load_pretrained(tmp_path)


TINY = pgjax.Transformer(width=8, layers=1, num_heads=2, num_groups=2, mlp_width=6, context=4, vocab=5)
PARAMS = jax.tree.map(
    lambda x: np.arange(x.size, dtype=x.dtype).reshape(x.shape),
    jax.eval_shape(lambda: TINY.init_text(jax.random.key(0))),
)


@pytest.fixture
def folder(tmp_path):
    save_pretrained(tmp_path, TINY, PARAMS)
    return tmp_path


Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({Q: None, UP: None}, rf"lacks {Q}, {UP} of the 11 tensors that its config.json asks for"),
        ({Q: np.zeros((8, 9), np.float32)}, rf"{Q} has shape \(8, 9\), but its config.json asks for \(8, 8\)"),
        ({Q: np.zeros((8, 8), np.int8)}, rf"{Q} is of type I8, expected F64, F32, F16 or BF16"),
        ({"score.weight": np.zeros(1, np.float32)}, r"holds score.weight, which its config.json has no use for"),
    ],
)
def test_tensors_that_are_not_those_of_the_config_are_refused(folder, changes, message):
    weights = load_file(folder / "model.safetensors") | changes
    weights = {name: weight for name, weight in weights.items() if weight is not None}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(pgjax.InputError, match=message):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        (
            "llama",
            {"model_type": "mistral"},
            'model_type = "mistral" is not accepted: expected gpt2 or llama or qwen2 or',
        ),
        ("llama", {"hidden_size": None}, "has no 'hidden_size', which every llama has"),
        ("llama", {"num_attention_heads": 3}, "Transformer.num_heads = 3 is not accepted: expected a divisor of width"),
        ("llama", {"hidden_size": "16"}, "Transformer.width = '16' is not accepted"),
        (
            "llama",
            {"hidden_act": "gelu"},
            'hidden_act = "gelu" is not accepted: expected gelu_new or gelu_pytorch_tanh',
        ),
        ("gpt2", {"activation_function": "gelu"}, 'activation_function = "gelu" is not accepted'),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "layer_idx = true is not accepted: expected false"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = false is not accepted: expected true"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = true is not accepted"),
        ("llama", {"quantization_config": {"bits": 4}}, r'quantization_config = {"bits": 4} is not accepted'),
        ("llama", {"attention_bias": True}, "mlp_bias = false is not accepted: expected the value of attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias = true is not accepted"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window = true is not accepted: expected false"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, 'layer_types = "sliding_attention" is not'),
        ("qwen3", {"attention_bias": True}, "attention_bias = true is not accepted: expected false"),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, 'rope_type = "yarn" is not accepted'),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "full_attention of the rope = {} is not accepted"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 1.5}}, "factor of the rope = 1.5 is not accepted"),
    ],
)
def test_configs_that_are_not_computed_here_are_refused(case, changes, message):
    kind, fields = CASES[case]
    with pytest.raises(pgjax.InputError, match=r"^label(: | has no)") as refused:
        model_of({"model_type": kind.lower()} | fields | changes, "label")
    assert message in str(refused.value)


def test_a_config_in_the_oldest_form_means_what_it_meant():
    """Keys that came later are absent or null."""
    name, model = model_of(
        {"model_type": "llama"} | SIZES | {"num_key_value_heads": None, "rope_scaling": None, "rope_theta": 7.0},
        "label",
    )
    assert (name, model.num_groups, model.rotary_base, model.norm_epsilon) == ("llama", 4, 7.0, 1e-6)
    assert not model.tied
    _, model = model_of({"model_type": "gpt2"} | CASES["gpt2"][1], "label")
    assert (model.mlp_width, model.activation, model.tied) == (64, "gelu", True)
    _, model = model_of({"model_type": "qwen3"} | SIZES, "label")
    assert model.depth == 128


def test_folders_without_a_model_are_refused(folder):
    with pytest.raises(pgjax.InputError, match="path = 'gpt2' is no folder"):
        load_pretrained("gpt2")
    with pytest.raises(pgjax.InputError, match=r"^Transformer.param_dtype = 'float16' is not accepted"):
        load_pretrained(folder, param_dtype="float16")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(pgjax.InputError, match=r"pytorch_model.bin is not read: .* safe_serialization=True"):
        load_pretrained(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(pgjax.InputError, match=r"holds no weights: expected model.safetensors"):
        load_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(pgjax.InputError, match=r"index.json has no 'weight_map'"):
        load_pretrained(folder)
    for content, message in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        (folder / "config.json").write_text(content)
        with pytest.raises(pgjax.InputError, match=message):
            load_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(pgjax.InputError, match=r"config.json cannot be read: No such file"):
        load_pretrained(folder)


def test_what_is_missing_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(pgjax.InputError, match=r"pip install 'pgjax\[language\]'"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "family", "message"),
    [
        ({"query_key_norm": True, "biases": "qkv"}, None, "qwen3 cannot hold Transformer.biases = 'qkv', only 'none'"),
        ({"norm": "layer"}, None, "llama cannot hold Transformer.norm = 'layer', only 'rms'"),
        ({}, "gpt2", "gpt2 cannot hold Transformer.positions = 'rotary', only 'learned'"),
        ({}, "gpt3", "family = 'gpt3' is not accepted: expected gpt2 or llama or qwen2 or qwen3"),
        ({"width": 9, "head_width": 4}, "llama", "width = 9, only multiples of num_heads = 2"),
        ({"biases": "all"}, "qwen2", "biases = 'all', only 'qkv'"),
    ],
)
def test_models_that_no_family_can_hold_are_refused(changes, family, message):
    with pytest.raises(pgjax.InputError) as refused:
        family_of(dataclasses.replace(TINY, **changes), family)
    assert message in str(refused.value)


def test_the_family_is_the_first_that_can_hold_the_model():
    gpt2 = {"positions": "learned", "norm": "layer", "gated": False, "biases": "all"}
    fields = {"gpt2": gpt2, "llama": {"biases": "all"}, "qwen2": {"biases": "qkv"}, "qwen3": {"query_key_norm": True}}
    assert [family_of(dataclasses.replace(TINY, **changes)) for changes in fields.values()] == list(fields)
    for changes in ({"num_groups": 1}, {"head_width": 6}):
        with pytest.raises(pgjax.InputError, match=f"gpt2 cannot hold Transformer.{next(iter(changes))}"):
            family_of(dataclasses.replace(TINY, **gpt2, **changes))


def test_saving_copies_the_tokenizer_and_refuses_what_it_cannot_write(folder):
    (folder / "tokenizer.json").write_text("{}")
    (folder / "notes.txt").write_text("not the model's")
    save_pretrained(folder / "copy", TINY, PARAMS, copy_from=folder)
    files = {file.name for file in (folder / "copy").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json"}
    assert json.loads((folder / "copy" / "config.json").read_text())["eos_token_id"] is None
    save_pretrained(folder, TINY, PARAMS, copy_from=folder)
    with pytest.raises(pgjax.InputError, match="copy_from = 'nowhere' is no folder"):
        save_pretrained(folder, TINY, PARAMS, copy_from="nowhere")
    with pytest.raises(pgjax.InputError, match=r"notes.txt' cannot be written: File exists"):
        save_pretrained(folder / "notes.txt", TINY, PARAMS)
    with pytest.raises(
        pgjax.InputError, match=r"params are not those of the model: embed is \(5, 8\), expected \(6, 8\)"
    ):
        save_pretrained(folder, dataclasses.replace(TINY, vocab=6), PARAMS)
    with pytest.raises(pgjax.InputError, match=r"value.kernel is \(8, 1\), expected absent"):
        save_pretrained(folder, TINY, PARAMS | {"value": {"kernel": np.zeros((8, 1))}})


def test_a_save_that_fails_leaves_what_was_there(folder, monkeypatch):
    def fail(tensors, path, **_):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.setattr(importlib.import_module("safetensors.numpy"), "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained(folder, TINY, jax.tree.map(lambda x: x + 1, PARAMS))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
