"""hf in transformers: head 1's logits and text are ours; any Llama-shaped checkpoint comes over and goes back."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mtp_jax.checkpoints import load_params, structure
from mtp_jax.convert import hf
from mtp_jax.convert.command import convert
from mtp_jax.convert.safetensors_file import open_folder
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.data.tokenizer_files import HuggingFaceTokenizer, SentencePieceTokenizer
from mtp_jax.decoding import DecodingModel, generate
from mtp_jax.decoding.prompts import prompt_ids
from mtp_jax.model import ModelSpec
from tests.convert import forward
from tests.convert.models import make_arrays, make_config, make_model, make_workdir, options, read_all
from tests.data.test_tokenizer_files import BPE, SP, sp_model
from tests.decoding import conftest as fixtures

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # more only get in each other's way on models this small
greedy_only = fixtures.greedy_only

V, NEW = 259, 64
LLAMA3 = dict(rope_scaling="llama3", rope_factor=8.0, rope_original_window=16, rope_theta=100.0)
LOGITS = {  # pairwise: kind, n, KV heads, tied or replicated, QK-norm, rotary scaling
    "parallel 1": dict(num_heads=1, num_layers=2, num_kv_heads=1, tie_embedding=True),
    "parallel 4": dict(num_heads=4, num_layers=6, unembedding="replicated", head_dim=6, **LLAMA3),
    "parallel 8": dict(num_heads=8, num_layers=9, num_kv_heads=4, qk_norm=True, tie_embedding=True),
    "causal 2": dict(head_kind="causal", num_heads=2, num_layers=3, qk_norm=True, rope_scaling="linear",
                     rope_factor=4.0),
    "anticausal 4": dict(head_kind="anticausal", num_heads=4, num_kv_heads=1, extra_trunk_layers=1),
    "linear 2": dict(head_kind="linear", num_heads=2, num_layers=2, num_kv_heads=1, qk_norm=True),
    "linear 4": dict(head_kind="linear", num_heads=4, num_layers=2, tie_embedding=True, **LLAMA3),
    "linear 3": dict(head_kind="linear", num_layers=2, unembedding="replicated"),
    "medusa 2": dict(head_kind="medusa", num_heads=2, num_layers=2, unembedding="replicated"),
    "sequential 4": dict(head_kind="sequential", num_heads=4, num_layers=2, tie_embedding=True),
}


def export(folder, seed=0, **changes):
    """Returns our config and arrays, and the model that transformers makes of their export."""
    config = make_config(**changes)
    arrays = make_arrays(config, seed)
    folder.mkdir(exist_ok=True)
    hf.write(dataclasses.replace(make_model(config, arrays), window=96), folder, options("run", folder, "hf"))
    return config, arrays, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def random_tokens(shape=(2, 40)):
    return np.random.default_rng(0).integers(0, V, shape, dtype=np.int32)


def their_logits(model, tokens_BxL):
    with torch.no_grad():
        return model(torch.tensor(tokens_BxL, dtype=torch.long)).logits.float().numpy()


@pytest.mark.parametrize("name", LOGITS)
def test_logits_of_head_1(name, tmp_path):
    config, arrays, model = export(tmp_path, **LOGITS[name])
    assert model.dtype == torch.float32
    assert type(model).__name__ == ("Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM")
    ours = forward.logits(config, arrays, random_tokens())
    assert forward.error(their_logits(model, random_tokens()), ours[0]) < 1e-5  # 1e-4 is what was asked for


def interleave_rotary(folder, model):
    for module in model.modules():
        for name in ("q_proj", "k_proj"):
            if hasattr(module, name):
                weight = getattr(module, name).weight
                halves = weight.data.view(-1, 2, module.head_dim // 2, weight.shape[1])
                weight.data = halves.transpose(1, 2).reshape(weight.shape)


def feed_head_1_from_a_lower_layer(folder, model):
    model.model.layers = torch.nn.ModuleList([*model.model.layers[:-2], model.model.layers[-1]])


def take_head_2(folder, model):
    heads = hf.open_file(folder / hf.HEADS)
    model.model.layers[-1].load_state_dict({name.removeprefix("heads.2."): torch.tensor(heads.read(name).copy())
                                            for name in heads.infos if name.startswith("heads.2.")})


@pytest.mark.parametrize("damage", [interleave_rotary, feed_head_1_from_a_lower_layer, take_head_2])
def test_a_wrong_export_is_noticed(damage, tmp_path):
    config, arrays, model = export(tmp_path)
    ours = forward.logits(config, arrays, random_tokens())[0]
    assert forward.error(their_logits(model, random_tokens()), ours) < 1e-5
    damage(tmp_path, model)
    assert forward.error(their_logits(model, random_tokens()), ours) > 0.01


@pytest.mark.parametrize("changes", [{}, dict(head_kind="anticausal", qk_norm=True), dict(
    head_kind="linear", num_layers=2, tie_embedding=True), dict(head_kind="sequential", num_layers=2, **LLAMA3)],
    ids=lambda changes: changes.get("head_kind", "parallel"))
def test_greedy_text_through_the_exported_tokenizer(changes, tmp_path, greedy_only):
    config, arrays, model = export(tmp_path, **changes)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompts = ["def f(x):", "naïve 日本語"]
    decoding = DecodingModel.from_params(ModelSpec.create(config), structure.nest(arrays), window=96,
                                         tokenizer=ByteTokenizer())
    ours = generate(decoding, prompt_ids(ByteTokenizer(), prompts), max_new_tokens=NEW)
    for prompt, ids in zip(prompts, ours.tokens):
        inputs = tokenizer(prompt, return_tensors="pt")
        theirs = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1]:]
        assert theirs.tolist()[:len(ids)] == ids.tolist() and len(ids) >= min(NEW, len(theirs)) - 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == ByteTokenizer().decode(ids)


def tokenizer_of(folder, tokenizer, files):
    """Returns what AutoTokenizer makes of an exported tokenizer."""
    folder.mkdir(exist_ok=True)
    model = make_model(make_config(vocab_size=tokenizer.vocab_size))
    hf.write(dataclasses.replace(model, tokenizer=tokenizer, tokenizer_files=files), folder,
             options("run", folder, "hf"))
    return transformers.AutoTokenizer.from_pretrained(folder)


TEMPLATE = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}},
                                                     {"SpecialToken": {"id": "<|eos|>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|eos|>": {"id": "<|eos|>", "ids": [1], "tokens": ["<|eos|>"]}}}
TOKENIZERS = {
    "bytes": lambda: (ByteTokenizer(), {}),
    "json": lambda: from_json(BPE),
    "json with EOS at the end": lambda: from_json({**BPE, "post_processor": TEMPLATE}),
    "json with offsets trimmed": lambda: from_json({**BPE, "post_processor": {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}}),
    "json without PAD, other class": lambda: from_json(
        {**BPE, "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}},
        {"tokenizer_class": "Qwen2Tokenizer", "bos_token": "<|eos|>", "eos_token": "<|bos|>", "add_eos_token": True}),
    "SentencePiece BPE": lambda: from_pieces(SP),
    "SentencePiece unigram": lambda: from_pieces(sp_model(model_type="unigram", add_dummy_prefix=True)),
    "SentencePiece, Llama's prefix": lambda: from_pieces(sp_model(add_dummy_prefix=True)),
}


def from_json(fields, config=None):
    files = {"tokenizer.json": json.dumps(fields).encode()}
    named = {} if config is None else {kind: config[f"{kind}_token"] for kind in ("bos", "eos")}
    if config:
        files["tokenizer_config.json"] = json.dumps(config).encode()
    return HuggingFaceTokenizer(files["tokenizer.json"], named), files


def from_pieces(data):
    return SentencePieceTokenizer(data), {"tokenizer.model": data}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tokenizer_gives_our_ids_with_bos_before_them(name, tmp_path):
    tokenizer, files = TOKENIZERS[name]()
    theirs = tokenizer_of(tmp_path / "out", tokenizer, files)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (
        tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert theirs("x").keys() == {"input_ids", "attention_mask"}
    vector = json.loads((tmp_path / "out" / "tokenizer_test.json").read_text())["texts"]
    assert len(vector) > 4 and all(theirs(case["text"])["input_ids"] == case["ids"] for case in vector)

    @settings(max_examples=100)
    @given(st.text(st.characters(exclude_categories=["Cs"] if name == "bytes" else ["Cs", "Cc", "Cn", "Co"])))
    def same(text):
        assume(not any(token in text for token in theirs.all_special_tokens))  # those are text to us alone
        ids = tokenizer.encode(text).tolist()
        assert theirs(text)["input_ids"] == [tokenizer.bos_id, *ids]
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)

    if "SentencePiece" not in name:  # where the two libraries differ on rare characters
        same()


def random_llama(kind, **fields):
    """Returns a random model of transformers."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{
        "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2, "max_position_embeddings": 64,
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, **fields})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


SCALED = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
SOURCES = {
    "Llama": (dict(kind="Llama"), "parallel"),
    "Llama, tied": (dict(kind="Llama", tie_word_embeddings=True, num_key_value_heads=4), "causal"),
    "Llama 3's angles": (dict(kind="Llama", rope_parameters=SCALED), "sequential"),
    "linear angles": (dict(kind="Llama", rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}),
                      "anticausal"),
    "Mistral": (dict(kind="Mistral", sliding_window=None, num_key_value_heads=1), "medusa"),
    "Qwen3": (dict(kind="Qwen3", head_dim=6), "parallel"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_checkpoint_of_transformers_comes_over_and_goes_back(name, tmp_path):
    fields, kind = SOURCES[name]
    llama = random_llama(**fields)
    llama.save_pretrained(tmp_path / "llama", max_shard_size="20KB" if name == "Llama" else "1GB")
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) == 1 or name == "Llama"
    source = options(tmp_path / "llama", tmp_path / "run", "workdir", src_format="hf", head_kind=kind)
    convert(source)
    model = hf.read(tmp_path / "llama", source)
    assert model.config.head_kind == kind and model.config.num_heads == 1 and model.tokenizer is None
    tokens = random_tokens() % 61
    ours = forward.logits(model.config, read_all(model), tokens)
    assert forward.error(their_logits(llama, tokens), ours[0]) < 1e-5
    arrays = structure.flatten(load_params(tmp_path / "run").params)
    assert all(np.array_equal(arrays[path], array) for path, array in read_all(model).items())
    hf.write(model, make(tmp_path / "again"), options(tmp_path / "llama", tmp_path / "again", "hf"))
    before, after = open_folder(tmp_path / "llama"), open_folder(tmp_path / "again")
    assert before.infos.keys() == after.infos.keys()
    for tensor in before.infos:
        assert before.read(tensor).tobytes() == after.read(tensor).tobytes(), tensor
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(their_logits(again, tokens), their_logits(llama, tokens))


def make(folder):
    folder.mkdir()
    return folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_checkpoint_of_16_bits(dtype, tmp_path):
    llama = random_llama("Llama").to(getattr(torch, dtype))
    llama.save_pretrained(tmp_path / "llama")
    model = hf.read(tmp_path / "llama", options(tmp_path / "llama", "run", "workdir"))
    assert model.config.param_dtype == {"bfloat16": "bfloat16", "float16": "float32"}[dtype]
    hf.write(model, make(tmp_path / "again"), options("run", tmp_path / "again", "hf", dtype=dtype))
    before, after = open_folder(tmp_path / "llama"), open_folder(tmp_path / "again")
    assert all(before.read(name).tobytes() == after.read(name).tobytes() for name in before.infos)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again").dtype == getattr(torch, dtype)


def test_a_model_that_transformers_saved_again_is_read_with_its_heads(tmp_path):
    """Fine-tuned there: weights and configs are written anew, our heads are still beside them."""
    folder = make_workdir(tmp_path / "run", make_config())
    convert(options(folder, tmp_path / "hf", "hf"))
    llama = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    llama.save_pretrained(tmp_path / "hf")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "hf")
    model = hf.read(tmp_path / "hf", options(tmp_path / "hf", "out", "workdir"))
    assert model.config.num_heads == 3 and isinstance(model.tokenizer, ByteTokenizer)
    arrays = read_all(model)
    assert all(arrays[path].tobytes() == array.tobytes() for path, array in make_arrays(make_config()).items())
