"""hf_parallel in transformers: every head's logits are ours, and its self-speculative text is head 1's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtp_jax.convert import hf_parallel
from mtp_jax.data.tokenizer import ByteTokenizer
from mtp_jax.decoding import DecodingModel, generate
from mtp_jax.model import ModelSpec
from tests.convert.models import make_config, make_model, options
from tests.decoding import conftest as fixtures
from tests.small_model import QUICK, make_params

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # more only get in each other's way on models this small
greedy_only = fixtures.greedy_only

V, NEW = 11, 64
LOGITS = {  # pairwise: kind, n, KV heads, tied or replicated, QK-norm
    "parallel 1": dict(num_heads=1, num_layers=2, num_kv_heads=1, tie_embedding=True),
    "parallel 2": dict(num_heads=2, num_layers=4, num_kv_heads=4, qk_norm=True),
    "parallel 4": dict(num_heads=4, num_layers=6, num_kv_heads=2, unembedding="replicated", head_dim=6),
    "parallel 8": dict(num_heads=8, num_layers=9, num_kv_heads=1, rope_scaling="llama3", rope_factor=8.0,
                       rope_original_window=16),
    "causal 2": dict(head_kind="causal", num_heads=2, num_layers=3, tie_embedding=True, qk_norm=True,
                     rope_scaling="linear", rope_factor=3.0),
    "causal 8": dict(head_kind="causal", num_heads=8, num_layers=9, num_kv_heads=4, unembedding="replicated"),
    "anticausal 4": dict(head_kind="anticausal", num_heads=4, num_kv_heads=1, extra_trunk_layers=1),
    "linear 1": dict(head_kind="linear", num_heads=1, num_layers=2, num_kv_heads=1, qk_norm=True),
    "linear 4": dict(head_kind="linear", num_heads=4, num_layers=2, num_kv_heads=4, tie_embedding=True),
    "medusa 2": dict(head_kind="medusa", num_heads=2, num_layers=2, unembedding="replicated"),
    "medusa 8": dict(head_kind="medusa", num_heads=8, num_layers=2, medusa_layers=2, num_kv_heads=4, qk_norm=True),
}
TEXT = {
    "parallel": dict(num_heads=4, qk_norm=True),
    "causal": dict(head_kind="causal", unembedding="replicated", num_kv_heads=1),
    "anticausal": dict(head_kind="anticausal", tie_embedding=True),
    "linear": dict(head_kind="linear", num_layers=2),
    "medusa": dict(head_kind="medusa", num_layers=2),
}
PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 1], [10]]


@pytest.fixture(autouse=True)
def own_modules(tmp_path, monkeypatch):
    """Keeps the copies of the model class that transformers makes out of the user's cache."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


def export(folder, seed=0, **changes):
    """Returns our spec and parameters, and the model that transformers makes of their export."""
    config = make_config(**{"vocab_size": V, **changes})
    spec, params = ModelSpec.create(config), make_params(config, seed)
    flat = {"/".join(key.key for key in path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    model = dataclasses.replace(make_model(config, flat), tokenizer=None)
    folder.mkdir(exist_ok=True)
    hf_parallel.write(model, folder, options("run", folder, "hf_parallel"))
    return spec, params, transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def our_logits(spec, params, tokens_BxL):
    """Returns [B, L, N, V]."""
    shape = tokens_BxL.shape

    def run(params, tokens_BxL):
        model, positions_BxL = spec.bind(params), jnp.tile(jnp.arange(shape[1]), (shape[0], 1))
        return model.logits(model(tokens_BxL, jnp.ones(shape, jnp.int32), positions_BxL))

    logits_NxBxLxV = jax.jit(run, compiler_options=QUICK)(params, tokens_BxL)[..., :spec.config.vocab_size]
    return np.moveaxis(np.asarray(logits_NxBxLxV), 0, 2)


def random_tokens(shape, seed=0):
    return np.random.default_rng(seed).integers(0, V, shape, dtype=np.int32)


def their_logits(model, tokens_BxL):
    with torch.no_grad():
        return model(torch.tensor(tokens_BxL, dtype=torch.long), output_all_heads=True).logits.numpy()


def error(mine, theirs):
    """Returns the largest difference of each head, over its largest logit."""
    assert mine.shape == theirs.shape
    return (np.abs(mine - theirs).max((0, 1, 3)) / np.abs(mine).max((0, 1, 3)))


@pytest.mark.parametrize("name", LOGITS)
def test_logits_of_every_head(name, tmp_path):
    spec, params, model = export(tmp_path / "out", **LOGITS[name])
    tokens_BxL = random_tokens((2, 20))
    theirs = their_logits(model, tokens_BxL)
    assert error(our_logits(spec, params, tokens_BxL), theirs).max() < 1e-4
    with torch.no_grad():
        head_1 = model(torch.tensor(tokens_BxL, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(head_1, theirs[:, :, 0], atol=1e-5)


def interleave_rotary(model):
    for module in model.modules():
        for name in ("q_proj", "k_proj"):
            if hasattr(module, name):
                weight = getattr(module, name).weight
                halves = weight.data.view(-1, 2, module.head_dim // 2, weight.shape[1])
                weight.data = halves.transpose(1, 2).reshape(weight.shape)


def swap_heads(model):
    model.model.heads = torch.nn.ModuleList([model.model.heads[k] for k in (0, 2, 1)])


def feed_heads_from_head_1(model):
    model.config.head_kind = "causal"


def feed_heads_from_a_lower_layer(model):
    model.model.layers = model.model.layers[:-1]


@pytest.mark.parametrize("damage, heads", [
    (interleave_rotary, (0, 1, 2)), (swap_heads, (1, 2)), (feed_heads_from_head_1, (1, 2)),
    (feed_heads_from_a_lower_layer, (0, 1, 2))])
def test_a_wrong_export_is_noticed(damage, heads, tmp_path):
    spec, params, model = export(tmp_path / "out")
    tokens_BxL = random_tokens((2, 20))
    mine = our_logits(spec, params, tokens_BxL)
    assert error(mine, their_logits(model, tokens_BxL)).max() < 1e-4
    damage(model)
    wrong = error(mine, their_logits(model, tokens_BxL)) > 0.01
    assert [k for k in range(3) if wrong[k]] == list(heads)


def padded(prompts):
    """Returns prompts as transformers takes them: padded on the left, with a mask."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in prompts])
    return {"input_ids": ids, "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row)
                                                              for row in prompts]), "pad_token_id": 0}


@pytest.mark.parametrize("kind", TEXT)
def test_greedy_text_and_acceptance_are_ours(kind, tmp_path, greedy_only):
    spec, params, model = export(tmp_path / "out", **TEXT[kind])
    N = spec.config.num_heads
    inputs = padded(PROMPTS)
    plain = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    ours = generate(DecodingModel.from_params(spec, params, window=128), PROMPTS, max_new_tokens=NEW)
    for heads in (1, N):
        drafted = model.generate_speculative(**inputs, max_new_tokens=NEW, do_sample=False, heads=heads)
        assert torch.equal(drafted.sequences, plain)
        assert drafted.produced.tolist() == [NEW] * 3 and drafted.accepted.shape == (3, heads - 1)
        assert heads == N or drafted.forwards.tolist() == [NEW] * 3
    assert plain[:, -NEW:].tolist() == [row.tolist() for row in ours.tokens]
    assert drafted.forwards.tolist() == ours.forwards.tolist()
    assert drafted.accepted.tolist() == ours.accepted.tolist()
    assert drafted.accepted.sum() > 2 and drafted.tokens_per_forward == pytest.approx(ours.tokens_per_forward)
    alone = model.generate_speculative(inputs["input_ids"][1:2], max_new_tokens=NEW, do_sample=False)
    assert torch.equal(alone.sequences[0], plain[1]) and torch.equal(alone.accepted[0], drafted.accepted[1])


def test_rows_end_where_plain_generation_ends_them(tmp_path):
    _, _, model = export(tmp_path / "out", **TEXT["parallel"])
    inputs = padded(PROMPTS)
    long = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    lengths = set()
    for more in (dict(eos_token_id=int(long[0, 20])), dict(eos_token_id=[int(long[1, 15]), int(long[2, 30])]),
                 dict(repetition_penalty=1.3, eos_token_id=int(long[2, 12])), dict(min_new_tokens=9, eos_token_id=3),
                 dict(no_repeat_ngram_size=2), dict(max_new_tokens=1)):
        arguments = {"max_new_tokens": 40, "do_sample": False, **inputs, **more}
        plain = model.generate(**arguments)
        assert torch.equal(model.generate(**arguments, heads=4), plain), more
        lengths.add(plain.shape[1])
    assert len(lengths) > 2


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.8, 0.7)])
def test_sampling_keeps_the_distribution_of_head_1(temperature, top_p, tmp_path):
    """Chi-square of two drawn tokens, the second a draft or its replacement, against the exact probabilities."""
    _, _, model = export(tmp_path / "out", seed=3, num_heads=2, num_layers=3)
    for parameter in model.parameters():  # flatter, so that many pairs are likely
        parameter.data *= 0.6
    filtered = top_p < 1  # takes the slower path, by one position of one row at a time
    rows, prompt = 600 if filtered else 6000, torch.tensor([[1, 2, 3]])
    torch.manual_seed(0)
    drawn = model.generate_speculative(prompt.repeat(rows, 1), max_new_tokens=3, do_sample=True, top_k=0, top_p=top_p,
                                       temperature=temperature, pad_token_id=0)
    pairs = torch.cat([prompt.repeat(V * V, 1), torch.cartesian_prod(torch.arange(V), torch.arange(V))], dim=1)
    with torch.no_grad():
        logits = model(pairs).logits.double() / temperature
    warp = transformers.TopPLogitsWarper(top_p) if filtered else lambda ids, scores: scores
    first, second = (warp(None, logits[:, i]).softmax(-1).gather(1, pairs[:, i + 1:i + 2])[:, 0] for i in (2, 3))
    expected = rows * first * second
    assert float(expected.sum()) == pytest.approx(rows)
    count = torch.bincount(drawn.sequences[:, 3] * V + drawn.sequences[:, 4], minlength=V * V)
    assert 0.1 < drawn.accepted.sum() / rows < 0.9
    assert count[expected == 0].sum() == 0 and (filtered == bool((expected == 0).any()))
    likely = expected >= 5
    cells = int(likely.sum())
    statistic = float(((count - expected) ** 2 / expected)[likely].sum())
    assert cells > 15 and statistic < cells + 4 * (2 * cells) ** 0.5


def test_the_lines_that_are_printed_write_our_text(tmp_path, capsys):
    config = make_config()
    params = make_params(config)
    flat = {"/".join(key.key for key in path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    lines = hf_parallel.write(make_model(config, flat), tmp_path, options("run", tmp_path, "hf_parallel"))
    exec("\n".join(lines).replace("64, ", "20, "))
    model = DecodingModel.from_params(ModelSpec.create(config), params, window=64, tokenizer=ByteTokenizer())
    ours = generate(model, [[256, *b"def "]], max_new_tokens=20, stop=[257])
    written = ByteTokenizer().decode(ours.tokens[0])
    assert capsys.readouterr().out == f"def {written}\n" and "heads=3" in lines[-1]

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    arguments = {**tokenizer("def ", return_tensors="pt"), "max_new_tokens": 40, "do_sample": False,
                 "tokenizer": tokenizer, "stop_strings": [tokenizer.decode([b]) for b in ours.tokens[0][5:15]]}
    parallel = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    plain = parallel.generate(**arguments)
    assert plain.shape[1] < 25 and torch.equal(parallel.generate(**arguments, heads=3), plain)
    with pytest.raises(ValueError, match="stop_strings needs the tokenizer"):
        parallel.generate(**{**arguments, "tokenizer": None}, heads=3)


def test_losses_are_the_heads_cross_entropies(tmp_path):
    spec, params, model = export(tmp_path / "out")
    tokens_BxL = random_tokens((2, 20))
    logits = our_logits(spec, params, tokens_BxL)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = [-np.mean([log_probs[b, i, k - 1, tokens_BxL[b, i + k]] for b in range(2) for i in range(20 - k)])
              for k in (1, 2, 3)]
    ids = torch.tensor(tokens_BxL, dtype=torch.long)
    np.testing.assert_allclose(model(ids, labels=ids).loss.item(), wanted[0], rtol=1e-5)
    output = model(ids, labels=ids, output_all_heads=True)
    np.testing.assert_allclose(output.loss.item(), sum(wanted), rtol=1e-5)
    output.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_padding_and_cache_change_nothing(tmp_path):
    _, _, model = export(tmp_path / "out")
    tokens = torch.tensor(random_tokens((1, 9)), dtype=torch.long)
    inputs = padded([tokens[0].tolist(), [1] * 12])
    with torch.no_grad():
        whole = model(tokens, output_all_heads=True).logits
        mask = inputs["attention_mask"]
        beside = model(inputs["input_ids"], attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                       output_all_heads=True).logits[:1, 3:]
        first = model(tokens[:, :5], output_all_heads=True)
        second = model(tokens[:, 5:], past_key_values=first.past_key_values, output_all_heads=True, use_cache=True)
    torch.testing.assert_close(beside, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole, rtol=0, atol=1e-5)
    states = model(tokens, output_hidden_states=True).hidden_states
    assert len(states) == 2 + model.config.num_trunk_layers
    torch.testing.assert_close(model.unembed(states[-1], 1), whole[:, :, 0], rtol=0, atol=1e-5)


def test_what_cannot_be_is_refused(tmp_path):
    _, _, model = export(tmp_path / "out")
    ids = torch.tensor([[1, 2, 3]])
    cache = model(ids, use_cache=True).past_key_values
    for match, arguments in (("must lie in 1..3", dict(heads=4)), ("beam_search", dict(heads=2, num_beams=2)),
                             ("output_scores", dict(heads=2, output_scores=True, return_dict_in_generate=True)),
                             ("still empty", dict(heads=2, past_key_values=cache)),
                             ("assistant_model", dict(heads=2, assistant_model=model)),
                             ("one row", dict(heads=2, input_ids=ids.repeat(2, 1), streamer=Streamer()))):
        with pytest.raises(ValueError, match=match):
            model.generate(**{"input_ids": ids, "max_new_tokens": 4, "pad_token_id": 0, **arguments})
    with pytest.raises(ValueError, match="filled with fewer heads"):
        model(ids, past_key_values=cache, output_all_heads=True)
    with pytest.raises(ValueError, match="output_attentions"):
        model(ids, output_attentions=True)


class Streamer(transformers.generation.BaseStreamer):
    """Keeps what it is given."""

    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_streaming_gives_the_text(tmp_path):
    _, _, model = export(tmp_path / "out")
    streamer = Streamer()
    text = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=20, do_sample=False, pad_token_id=0, heads=3,
                          streamer=streamer)
    assert streamer.tokens == text[0].tolist() and streamer.ended


@pytest.mark.parametrize("name", ["parallel 1", "parallel 4", "parallel 8", "medusa 8"])
def test_saved_by_transformers_it_is_the_same_model(name, tmp_path):
    """save_pretrained writes the model class too; transformers and our converter read back what was exported."""
    spec, params, model = export(tmp_path / "out", **LOGITS[name])
    model.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    tokens_BxL = random_tokens((1, 9))
    np.testing.assert_array_equal(their_logits(again, tokens_BxL), their_logits(model, tokens_BxL))
    place = tmp_path / "again"
    back = hf_parallel.read(place, options(place, "run", "workdir", src_format="hf_parallel"))
    assert back.config == dataclasses.replace(spec.config, head_dim=spec.config.attention_head_dim)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(key.key for key in path)
        rows = V if name in ("embedding/embedding", "unembedding/kernel") else None
        np.testing.assert_array_equal(back.read(name, ())[..., :rows, :] if rows else back.read(name, ()),
                                      np.asarray(leaf)[..., :rows, :] if rows else np.asarray(leaf))


def test_other_attention_and_narrow_numbers(tmp_path):
    _, _, model = export(tmp_path / "out")
    ids = torch.tensor([[1, 2, 3]])
    plain = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
    eager = type(model).from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert torch.equal(eager.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0, heads=3), plain)
    narrow = type(model).from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert narrow.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0, heads=3).shape == (1, 23)
    near = error(their_logits(model, ids.numpy()), narrow(ids, output_all_heads=True).logits.float().detach().numpy())
    assert 0 < near.max() < 0.1
