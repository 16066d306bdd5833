"""hf_mtp in transformers: logits of head 1 and of the modules are ours, and so is the text that it drafts itself."""

import dataclasses

import numpy as np
import pytest

from mtp_jax.checkpoints import structure
from mtp_jax.convert import hf_mtp
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.decoding import DecodingModel, generate
from mtp_jax.model import ModelSpec
from tests.convert.forward import error, logits
from tests.convert.models import make_config, make_model, options
from tests.decoding import conftest as fixtures
from tests.small_model import make_params

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # more only get in each other's way on models this small
greedy_only = fixtures.greedy_only

V, NEW = 11, 64
MODELS = {
    "llama 1": dict(num_heads=2, num_kv_heads=1, tie_embedding=True),
    "llama 2": dict(num_heads=3, num_kv_heads=4, head_dim=6, rope_scaling="llama3", rope_factor=8.0,
                    rope_original_window=16),
    "llama 4": dict(num_heads=5, num_kv_heads=2, extra_trunk_layers=1),
    "mellum": dict(num_heads=2, num_kv_heads=2, qk_norm=True, rope_theta=500.0),
    "qwen3 3": dict(num_heads=4, num_kv_heads=1, qk_norm=True, tie_embedding=True),
}


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """Keeps the copies of the model class that transformers makes out of the user's cache."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def export(folder, *, damage=None, heads=None, **changes):
    """Returns our config and arrays, and the model that transformers makes of their export."""
    config = make_config(**{"head_kind": "sequential", "num_layers": 2, "vocab_size": V, **changes})
    arrays = {path: np.asarray(leaf) for path, leaf in structure.flatten(make_params(config)).items()}
    written = {**arrays, **(damage(arrays) if damage else {})}
    folder.mkdir(exist_ok=True)
    hf_mtp.write(dataclasses.replace(make_model(config, written), tokenizer=None), folder,
                 options("run", folder, "hf_mtp", heads=heads, max_shard_megabytes=1))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=not hf_mtp.is_mellum(config))
    return config, arrays, model.eval()


def drafter(model):
    """Returns the modules as transformers' own generator loads them."""
    return transformers.generation.candidate_generator.MTPCandidateGenerator(
        model, transformers.GenerationConfig(do_sample=False), {})


def their_logits(model, tokens_BxL, before_norm=False):
    """Returns the logits of all heads [N, B, T, V] at the positions whose tokens ahead are all known.

    Args:
      model: in transformers.
      tokens_BxL: T + N - 1 tokens a row.
      before_norm: feed the first module with the state before the final norm, which is wrong.
    """
    tokens, modules = torch.tensor(tokens_BxL, dtype=torch.long), drafter(model).mtp_model
    K, states = len(modules.layers), []
    T = tokens.shape[1] - K
    model.model.norm.register_forward_hook(lambda module, inputs, output: states.append(inputs[0]))
    with torch.no_grad():
        output = model(tokens[:, :T], output_hidden_states=True)
        h, found = states[0] if before_norm else output.hidden_states[-1], [output.logits]
        for k in range(K):
            positions = torch.arange(k + 1, k + 1 + T)[None].repeat(len(tokens), 1)
            h = modules.forward_layer(k, h, positions, transformers.cache_utils.MtpCache(config=modules.config),
                                      input_ids=tokens[:, k + 1:k + 1 + T])
            found.append(modules._project_to_logits(h))
    return np.stack([logits.numpy() for logits in found])


def random_tokens(shape, seed=0):
    return np.random.default_rng(seed).integers(0, V, shape, dtype=np.int32)


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_every_head(name, tmp_path):
    config, arrays, model = export(tmp_path / "out", **MODELS[name])
    K = config.num_heads - 1
    tokens_BxL = random_tokens((2, 20 + K))
    ours, theirs = logits(config, arrays, tokens_BxL)[:, :, :20], their_logits(model, tokens_BxL)
    for k in range(K + 1):
        assert error(theirs[k], ours[k]) < 1e-5, f"head {k + 1}"  # 1e-4 is what was asked for


def swap_halves(arrays):
    """The state's half of the projection first, as the paper writes it."""
    halves = np.split(arrays["heads/projection"], 2, axis=1)
    return {"heads/projection": np.concatenate(halves[::-1], axis=1)}


def swap_modules(arrays):
    return {path: array[::-1] for path, array in arrays.items() if path.startswith("heads/")}


def interleave_rotary(arrays):
    """Rotary pairs side by side, as Meta has them, in the modules alone."""
    found = {}
    for path in ("heads/block/attention/query", "heads/block/attention/key"):
        halves = arrays[path].reshape(*arrays[path].shape[:-1], 2, -1)
        found[path] = halves.swapaxes(-1, -2).reshape(arrays[path].shape)
    return found


@pytest.mark.parametrize("damage, before_norm", [(swap_halves, False), (swap_modules, False), (None, True),
                                                 (interleave_rotary, False)])
def test_a_wrong_export_is_noticed(damage, before_norm, tmp_path):
    config, arrays, model = export(tmp_path / "out", damage=damage, num_heads=3)
    tokens_BxL = random_tokens((2, 22))
    ours, theirs = logits(config, arrays, tokens_BxL)[:, :, :20], their_logits(model, tokens_BxL, before_norm)
    assert error(theirs[0], ours[0]) < 1e-5
    assert min(error(theirs[k], ours[k]) for k in (1, 2)) > 0.01


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text_is_ours_and_its_drafts_are(name, tmp_path, monkeypatch, greedy_only):
    """Plain generation, that with drafts, and ours write the same; every draft is what our heads say there."""
    config, arrays, model = export(tmp_path / "out", **MODELS[name])
    params = structure.nest(arrays)
    made, kind = [], transformers.generation.candidate_generator.MTPCandidateGenerator
    get_candidates = kind.get_candidates

    def recorded(self, input_ids, *args, **kwargs):
        ids, candidate_logits = get_candidates(self, input_ids, *args, **kwargs)
        if candidate_logits is not None:
            made.append((input_ids[0].tolist(), ids[0, input_ids.shape[1]:].tolist(), candidate_logits[0].numpy()))
        return ids, candidate_logits

    monkeypatch.setattr(kind, "get_candidates", recorded)
    prompts = [[1, 2, 3, 4, 5], [7, 1, 1, 2, 10, 3, 3, 9, 8]]
    ours = generate(DecodingModel.from_params(ModelSpec.create(config), params, window=128), prompts,
                    max_new_tokens=NEW)
    for row, prompt in zip(ours.tokens, prompts):
        ids = torch.tensor([prompt])
        plain = model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        drafted = model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0, use_mtp=True)
        assert row.tolist() == plain[0, len(prompt):].tolist() == drafted[0, len(prompt):].tolist()
    longest = max(len(text) + len(drafts) for text, drafts, _ in made)
    padded = np.array([[*text, *drafts, *[0] * (longest - len(text) - len(drafts))] for text, drafts, _ in made])
    want_NxBxLxV = logits(config, arrays, padded)
    for row, (text, drafts, found) in enumerate(made):
        wanted = np.stack([want_NxBxLxV[k, row, len(text) - 2] for k in range(1, 1 + len(drafts))])
        assert error(found, wanted) < 1e-4, f"after {len(text)} tokens"
    assert len(made) < 2 * (NEW - 1)  # some were accepted


def test_shards_and_fewer_heads(tmp_path):
    """Modules in several files that the index names; of four heads the first three are written."""
    config, arrays, model = export(tmp_path / "out", num_heads=4, heads=3, d_model=128, d_ff=256)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    tokens_BxL = random_tokens((2, 22))
    ours, theirs = logits(config, arrays, tokens_BxL)[:3, :, :20], their_logits(model, tokens_BxL)
    assert [error(theirs[k], ours[k]) < 1e-4 for k in range(3)] == [True] * 3 == [True] * len(theirs)


def test_without_the_class_it_is_a_plain_llama(tmp_path):
    _, _, model = export(tmp_path / "out", num_heads=3)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    tokens = torch.tensor(random_tokens((1, 9)), dtype=torch.long)
    assert type(plain) is transformers.LlamaForCausalLM is not type(model)
    with torch.no_grad():
        assert torch.equal(plain(tokens).logits, model(tokens).logits)


def test_the_lines_that_are_printed_write_our_text(tmp_path, capsys):
    for name in ("llama 2", "mellum"):
        config = make_config(**{**MODELS[name], "head_kind": "sequential", "num_layers": 2})
        arrays = {path: np.asarray(leaf) for path, leaf in structure.flatten(make_params(config)).items()}
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        lines = hf_mtp.write(make_model(config, arrays), folder, options("run", folder, "hf_mtp"))
        exec("\n".join(lines).replace("64, ", "20, do_sample=False, "))
        model = DecodingModel.from_params(ModelSpec.create(config), structure.nest(arrays), window=64,
                                          tokenizer=ByteTokenizer())
        ours = generate(model, [[256, *b"def "]], max_new_tokens=20, stop=[257])
        assert capsys.readouterr().out.strip("\n") == f"<|bos|>def {ByteTokenizer().decode(ours.tokens[0])}"
