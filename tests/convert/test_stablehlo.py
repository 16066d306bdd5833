"""Exported programs write the text that we write, in a process that has neither mtp_jax nor flax."""

import dataclasses
import hashlib
import importlib.util
import json
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from jax import export

from mtp_jax.checkpoints import structure
from mtp_jax.config import ConvertConfig
from mtp_jax.convert import stablehlo
from mtp_jax.convert.model import Model
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.decoding import DecodingModel, generate
from mtp_jax.model import ModelSpec
from tests.decoding import conftest as fixtures
from tests.decoding.models import trained_model
from tests.small_model import make_config, make_params

greedy_only = fixtures.greedy_only
KINDS = {
    "parallel": dict(num_attention_heads=4, num_kv_heads=2, qk_norm=True),
    "linear": dict(head_kind="linear", tie_embedding=True),
    "causal": dict(head_kind="causal", unembedding="replicated"),
    "anticausal": dict(head_kind="anticausal", unembedding="replicated"),
    "sequential": dict(head_kind="sequential", num_kv_heads=1),
    "medusa": dict(head_kind="medusa", tie_embedding=True),
}
NEW = 64
# Two batches of other lengths, one of which needs more room for prompts: nothing is exported again.
BATCHES = [[[256, 1, 2, 3]], [[256, 7], [5] * 70, [256, 9, 9, 8, 7]]]
FORBIDS = """
import json, sys
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mtp_jax", "flax", "orbax", "safetensors", "optax"):
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Forbidden())
sys.path[:0] = sys.argv[1].split(":")
import load
model = load.Model(sys.argv[2])
count, batches = json.loads(sys.argv[3])
print(json.dumps([[model.generate(prompts, count, speculative) for prompts in batches] for speculative in (0, 1)]))
"""


def as_model(config, params, tokenizer=None):
    """Returns parameters in memory as a model to convert."""
    leaves = {name: np.asarray(leaf) for name, leaf in structure.flatten(params).items()}
    return Model(config, {name: structure.Leaf(leaf.shape, leaf.dtype) for name, leaf in leaves.items()},
                 lambda path, index: leaves[path][index], 256, tokenizer)


def made(name, **changes):
    """Returns a model's config and parameters, large enough that drafts are right now and then."""
    config = make_config(**{**KINDS[name], "vocab_size": 259, **changes})
    return config, make_params(config)


def exported(folder, model, **options):
    """Exports a model and returns its manifest."""
    folder.mkdir()
    stablehlo.write(model, folder, ConvertConfig(src="run", dst=str(folder), dst_format="stablehlo", **options))
    return json.loads((folder / "manifest.json").read_text())


def written(folder):
    """Returns what a fresh process writes with an exported model: [without drafts, with them], each [batch][row]."""
    # -I: no environment, no user site, nothing beside the script; -S: no site-packages but those named here.
    command = [sys.executable, "-I", "-S", "-c", FORBIDS, ":".join([str(folder), *sys.path]), str(folder),
               json.dumps([NEW, BATCHES])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["parallel", *(pytest.param(name, marks=pytest.mark.slow) for name in KINDS
                                                if name != "parallel")])
def test_text_equals_ours_in_a_process_without_mtp_jax(tmp_path, greedy_only, name):
    """Plain and speculatively, batches of 1 and 3 rows, prompts of two lengths."""
    config, params = made(name)
    exported(tmp_path / name, as_model(config, params))
    model = DecodingModel.from_params(ModelSpec.create(config), params, window=256)
    ours = [row.tolist() for row in generate(model, sum(BATCHES, []), max_new_tokens=NEW).tokens]  # rows alone matter
    assert written(tmp_path / name) == [[ours[:1], ours[1:]]] * 2


def loader(folder):
    """Returns the loader that lies beside an export, as a module."""
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_as_many_tokens_a_forward_as_ours(tmp_path, greedy_only, name):
    """A trained model drafts as well there as here: the same text in as many blocks."""
    spec, params, _ = trained_model(KINDS[name].get("head_kind", name), dtype="float32")
    exported(tmp_path / "x", as_model(spec.config, params))
    model, blocks = loader(tmp_path / "x").Model(tmp_path / "x"), []
    verify = model.functions["verify"]
    model.functions["verify"] = lambda tokens, cache: (blocks.append(1), verify(tokens, cache))[1]
    prompts = [[256, *b"self"]]
    ours = generate(DecodingModel.from_params(spec, params, window=256), prompts, max_new_tokens=NEW)
    assert model.generate(prompts, NEW) == [ours.tokens[0].tolist()]
    assert len(blocks) == ours.blocks[0] < NEW - 1


def test_verify_keeps_what_head_1_agrees_with(tmp_path):
    """Drafts that are the text itself are all kept; of others, those before the first wrong one."""
    config, params = made("parallel")
    manifest = exported(tmp_path / "x", as_model(config, params))
    model = loader(tmp_path / "x").Model(tmp_path / "x")
    prompt, right = [256, 3, 4], 6
    text = model.generate([prompt], 9, speculative=False)[0]
    out = model.functions["prefill"](np.array([prompt], np.int32), np.array([3], np.int32))
    assert out["next"].tolist() == text[:1]
    after_prompt = longer(out["cache"], 8)
    for kept in range(3):
        block = np.array([text[:3]], np.int32)
        block[0, 1 + kept:] = (block[0, 1 + kept:] + 1) % 256  # wrong from here on
        out = model.functions["verify"](block, after_prompt)
        assert out["accepted"].tolist() == [kept] and out["next"][0, :kept + 1].tolist() == text[1:kept + 2]
        if kept == 0:  # a draft that would be right after a wrong one
            block[0, 2] = out["next"][0, 1]
            assert model.functions["verify"](block, after_prompt)["accepted"].tolist() == [0]
        # What was not kept has left no trace: the text goes on.
        place = kept + 1
        while place < right:
            out = model.functions["decode"](np.array([text[place:place + 1]], np.int32), out["cache"])
            place += 1
            assert out["next"].tolist() == [text[place:place + 1]]
    shape = manifest["functions"]["verify"]["inputs"]["cache"]["heads.2.keys"]
    assert shape == {"shape": ["b", 2, "c", 4], "dtype": "float32"}


def longer(cache, room):
    """Returns a cache with room for more positions."""
    return {name: np.pad(x, [(0, 0), (0, 0), (0, room), (0, 0)]) if x.ndim == 4 else x for name, x in cache.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_drafts_are_those_of_the_whole_text(tmp_path, name):
    """What a block leaves in the cache drafts as if the text had been read at once, whatever was rejected before."""
    config, params = made(name, num_heads=3, num_layers=4)
    exported(tmp_path / "x", as_model(config, params))
    model = loader(tmp_path / "x").Model(tmp_path / "x")

    def at_once(text):
        tokens = np.zeros((1, 32), np.int32)
        tokens[0, :len(text)] = text
        return model.functions["prefill"](tokens, np.array([len(text)], np.int32))

    text = [256]
    out, drawn, places = at_once(text), np.random.default_rng(0), []
    cache, drafts = longer(out["cache"], 32), out["drafts"]
    text += out["next"].tolist()
    while len(text) < 28:
        right = model.generate([text], 3, speculative=False)[0]
        drafts = np.array(drafts)
        known = drawn.integers(0, 3)
        drafts[0, :known] = right[:known]  # random models draft badly: so that 0 to 2 are kept
        out = model.functions["verify"](np.append([text[-1:]], drafts, 1).astype(np.int32), cache)
        cache, drafts, kept = out["cache"], out["drafts"], int(out["accepted"][0])
        text += out["next"][0, :kept + 1].tolist()
        places.append(kept)
        assert out["drafts"].tolist() == at_once(text[:-1])["drafts"].tolist()
    assert {0, 2} <= set(places)


def test_manifest(tmp_path, greedy_only):
    """It tells what the programs take, and the checksums of all files."""
    config, params = made("parallel", num_layers=3, num_heads=2)
    manifest = exported(tmp_path / "x", as_model(config, params, ByteTokenizer()), heads=1, dtype="bfloat16")
    assert (manifest["heads"], manifest["vocab_size"], manifest["window"]) == (1, 259, 256)
    assert manifest["special_ids"] == {"bos": 256, "eos": 257, "pad": 258}
    assert sorted(manifest["functions"]) == ["decode", "prefill"]  # nobody drafts
    for file, facts in manifest["files"].items():
        assert hashlib.sha256((tmp_path / "x" / file).read_bytes()).hexdigest() == facts["sha256"]
    assert sorted(manifest["files"]) == ["decode.bin", "load.py", "params.safetensors", "prefill.bin"]
    for facts in manifest["functions"].values():  # nothing that only one platform or version of a library runs
        program = export.deserialize(bytearray((tmp_path / "x" / facts["file"]).read_bytes()))
        assert program.platforms == ("cpu", "cuda", "tpu") and not program.disabled_safety_checks
        assert set(re.findall(r"custom_call @(\w+)", program.mlir_module())) == {"shape_assertion"}
    module = loader(tmp_path / "x")
    model = module.Model(tmp_path / "x")
    assert model.params["embedding"].shape == (259, 16)  # without padding
    assert model.params["embedding"].dtype == ml_dtypes.bfloat16
    assert model.params["final_norm.scale"].dtype == np.float32
    assert "heads.1.attention.query" not in model.params
    out = model.functions["prefill"](np.array([[1, 2]], np.int32), np.array([2], np.int32))
    spec = ModelSpec.create(dataclasses.replace(config, dtype="bfloat16"))
    ours = generate(DecodingModel.from_params(spec, params, window=64), [[1, 2]], max_new_tokens=1, heads=1)
    assert out["next"].tolist() == ours.tokens[0].tolist()
    assert out["cache"]["trunk.0.keys"].dtype == ml_dtypes.bfloat16
    for file in ("decode.bin", "params.safetensors"):
        data = bytearray((tmp_path / "x" / file).read_bytes())
        data[-1] ^= 1
        (tmp_path / "x" / file).write_bytes(data)
        with pytest.raises(ValueError, match=f"{file} is damaged"):
            module.Model(tmp_path / "x")


def test_refusals(tmp_path):
    """A dtype without programs, and numbers that are none."""
    config, params = made("parallel", num_layers=2, num_heads=1)
    with pytest.raises(ValueError, match="--dtype='float16' is not one of"):
        exported(tmp_path / "half", as_model(config, params), dtype="float16")
    params["trunk"]["mlp"]["up"] = params["trunk"]["mlp"]["up"].at[0, 1, 2].set(np.nan)
    with pytest.raises(ValueError, match=r"trunk/mlp/up\[0\] holds 1 numbers that are NaN"):
        exported(tmp_path / "nan", as_model(config, params))
