"""A workdir's model for decoding: the heads in use and no others, the right tokenizer, and what is told when not."""

import json
import shutil

import jax
import numpy as np
import pytest

from mtp_jax import config as configs
from mtp_jax.checkpoints import CheckpointError, load_params
from mtp_jax.data.tokenizer import ByteTokenizer, build_tokenizer
from mtp_jax.decoding import generate, load
from mtp_jax.decoding.load import load_model
from mtp_jax.decoding.model import DecodingModel
from mtp_jax.decoding.weights import first_heads
from mtp_jax.model import ModelSpec
from mtp_jax.model.heads import HEAD_KINDS, HeadKind
from tests.decoding.workdirs import write_workdir
from tests.small_model import make_config, make_params

WINDOW = 48
KINDS = {"parallel": {}, "replicated": dict(unembedding="replicated", extra_trunk_layers=1),
         "linear": dict(head_kind="linear", tie_embedding=True, num_layers=2), "causal": dict(head_kind="causal"),
         "anticausal": dict(head_kind="anticausal", unembedding="replicated"),
         "medusa": dict(head_kind="medusa", unembedding="replicated"),
         "sequential": dict(head_kind="sequential", num_layers=2)}


def make_run(folder, steps=(1,), **changes):
    """Makes the workdir of a run that saved random parameters; returns its folder, its ModelSpec and the last ones."""
    model = make_config(**{"vocab_size": 259, "dtype": "float32", "param_dtype": "float32", **changes})
    params = {step: make_params(model, seed=step) for step in steps}
    return write_workdir(folder, model, params, seq_len=WINDOW), ModelSpec.create(model), params[steps[-1]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir of three parallel heads with the checkpoints 1 and 2; its spec and parameters."""
    return make_run(tmp_path_factory.mktemp("saved") / "run", steps=(1, 2))


@pytest.fixture
def copy(saved, tmp_path):
    """The workdir again, to be spoilt."""
    return shutil.copytree(saved[0], tmp_path / "copy")


def assert_same_weights(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", KINDS)
def test_the_weights_are_those_of_the_heads_in_use(name, tmp_path, monkeypatch):
    folder, spec, params = make_run(tmp_path / "run", **KINDS[name])
    read = []
    monkeypatch.setattr(load, "load_params", lambda *args, **options: read.append(load_params(*args, **options))
                        or read[-1])
    for k in range(1, spec.config.num_heads + 1):
        model = load_model(folder, heads=k)
        want = DecodingModel.from_params(spec, params, heads=k, window=WINDOW)
        assert_same_weights(model.weights, want.weights)
        every = DecodingModel.from_params(spec, params, window=WINDOW).weights
        assert_same_weights(first_heads(spec.config, every, k), want.weights)
        assert (model.heads, model.window, model.step, model.source) == (k, WINDOW, 1, str(folder))
        rows = spec.config.num_heads if name == "anticausal" else k
        taken = read.pop().params
        own = rows - 1 if name in ("medusa", "sequential") else rows  # head 1 has no parameters
        assert [leaf.shape[0] for leaf in jax.tree.leaves(taken.get("heads", {}))] == (
            [own] * len(jax.tree.leaves(params["heads"])) if own else [])
        if spec.config.unembedding == "replicated":
            assert taken["unembedding"]["kernel"].shape[0] == rows


def test_defaults_are_all_heads_the_newest_step_and_the_length_of_training(saved):
    folder, spec, params = saved
    model = load_model(folder)
    assert (model.heads, model.step, model.window, model.layout) == (3, 2, WINDOW, None)
    assert model.tokenizer.hash == ByteTokenizer.hash and model.cache_dtype == "float32"
    assert_same_weights(model.weights, DecodingModel.from_params(spec, params, window=WINDOW).weights)
    assert load_model(folder, step=1).step == 1
    assert load_model(folder, cache_dtype="bfloat16").cache_dtype == "bfloat16"


def test_a_mesh_lays_the_parameters_out(saved):
    folder, spec, params = saved
    model = load_model(folder, mesh="tensor:2,pred_heads:2,data:-1", heads=3)
    assert model.layout.mesh.size == 8
    assert_same_weights(model.weights, DecodingModel.from_params(spec, params, window=WINDOW).weights)
    assert any(len(leaf.sharding.device_set) == 8 and not leaf.sharding.is_fully_replicated
               for leaf in jax.tree.leaves(model.weights))
    with pytest.raises(ValueError, match="unknown axis 'rows'"):
        load_model(folder, mesh="rows:2")


def test_a_damaged_checkpoint_is_passed_over(copy, caplog):
    (copy / "checkpoints/2/state/_METADATA").write_text("{}")
    assert load_model(copy).step == 1
    assert "Checkpoint 2" in caplog.text


@pytest.mark.parametrize("arguments, message", [
    (dict(heads=4), r"heads=4 must lie in 1\.\.3.*: 1 decodes without drafts"),
    (dict(heads=0), "heads=0 must lie in"),
    (dict(window=0), "window=0 must be at least 1"),
    (dict(step=7), "step=7, but .* has checkpoints of the steps 1, 2"),
    (dict(cache_dtype="float8"), "cache_dtype='float8' is not one of"),
    (dict(tokenizer="nowhere.json"), "^tokenizer='nowhere.json' does not exist"),
])
def test_arguments_that_do_not_fit(saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_model(saved[0], **arguments)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}], ids=["greedy", "drawn"])
def test_a_model_that_diverged_is_told(options):
    spec = ModelSpec.create(make_config(**KINDS["linear"]))
    params = jax.tree.map(lambda leaf: np.nan * leaf, make_params(spec.config))
    told = []
    with pytest.raises(ValueError, match="logits after prompt 1 are NaN.*earlier step"):
        generate(DecodingModel.from_params(spec, params, window=WINDOW), [[1, 2]], max_new_tokens=4, **options,
                 on_tokens=lambda *tokens: told.append(tokens))
    assert told == []


@pytest.mark.parametrize("dtype", ["int8", "float33", "float64"])
def test_the_cache_has_a_dtype_of_its_own_or_the_models(dtype):
    spec = ModelSpec.create(make_config(**KINDS["linear"], dtype="float32", param_dtype="float32"))
    with pytest.raises(ValueError, match=f"cache_dtype='{dtype}' is not one of .'bfloat16', 'float32'."):
        DecodingModel.from_params(spec, make_params(spec.config), window=WINDOW, cache_dtype=dtype)


def test_a_window_longer_than_training_is_warned_of(saved, caplog):
    assert load_model(saved[0], window=WINDOW + 1).window == WINDOW + 1
    assert f"window={WINDOW + 1} is longer than the {WINDOW} tokens" in caplog.text


def test_a_folder_that_is_no_run(saved, tmp_path):
    with pytest.raises(ValueError, match="does not exist. Did you mean"):
        load_model(saved[0].parent / "rum")
    with pytest.raises(CheckpointError, match="has no checkpoint: name the --workdir of a run that has saved"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match="has no checkpoint|is a file"):
        (tmp_path / "file").write_text("x")
        load_model(tmp_path / "file")


def test_a_missing_config_is_taken_from_the_checkpoint(copy, saved, caplog):
    (copy / "config.json").unlink()
    assert_same_weights(load_model(copy).weights, load_model(saved[0]).weights)
    assert "config.json is missing" in caplog.text
    with pytest.raises(ValueError, match="was trained with another"):
        load_model(copy, tokenizer=OtherTokenizer())


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"num_hats": 3}}', '{"model": {"num_heads": "x"}}'])
def test_a_damaged_config_is_told_with_the_remedy(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json is damaged.*delete"):
        load_model(copy)


def test_a_config_of_another_model_is_told(copy):
    stored = json.loads((copy / "config.json").read_text())
    stored["model"]["d_ff"] = 32
    (copy / "config.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="(?s)does not fit.*heads/mlp/gate.*config.json tells of another model"):
        load_model(copy)


class OtherTokenizer(ByteTokenizer):
    """Bytes in another order."""

    hash = "0" * 64


def train_tokenizer(folder):
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir(exist_ok=True)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["def x"], vocab_size=259, special_tokens=["<|bos|>", "<|eos|>"], show_progress=False)
    bpe.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def test_another_tokenizer_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer='OtherTokenizer' has the hash 0{16}, but .* \(data.tokenizer="
                                         r"'bytes' then\).*--tokenizer=FILE"):
        load_model(saved[0], tokenizer=OtherTokenizer())
    with pytest.raises(ValueError, match="its ids mean other text"):
        load_model(saved[0], tokenizer=train_tokenizer(tmp_path))


def test_a_tokenizer_may_have_moved(tmp_path):
    place = train_tokenizer(tmp_path / "first")
    found = build_tokenizer(configs.DataConfig(tokenizer=place))
    model = make_config(vocab_size=259, dtype="float32", param_dtype="float32")
    folder = write_workdir(tmp_path / "run", model, {1: make_params(model)}, seq_len=WINDOW, tokenizer=place,
                           tokenizer_hash=found.hash)
    assert load_model(folder).tokenizer.hash == found.hash
    (tmp_path / "first").rename(tmp_path / "second")
    with pytest.raises(ValueError, match="does not exist.*name its place: --tokenizer=FILE"):
        load_model(folder)
    moved = str(tmp_path / "second" / "tokenizer.json")
    assert load_model(folder, tokenizer=moved).tokenizer.hash == found.hash
    assert load_model(folder, tokenizer=found).tokenizer is found


def test_a_run_that_did_not_note_its_tokenizer_warns_once_and_compares_sizes(copy, caplog, tmp_path):
    stored = json.loads((copy / "config.json").read_text())
    del stored["tokenizer_hash"]
    (copy / "config.json").write_text(json.dumps(stored))
    assert load_model(copy, tokenizer=OtherTokenizer()).tokenizer.hash == OtherTokenizer.hash
    assert caplog.text.count("does not say which tokenizer") == 1
    load_model(copy)
    assert caplog.text.count("does not say which tokenizer") == 1
    larger = OtherTokenizer()
    larger.vocab_size = 260
    with pytest.raises(ValueError, match="has 260 ids, more than the vocabulary of 259"):
        load_model(copy, tokenizer=larger)


def test_a_kind_that_only_trains_says_so(saved, monkeypatch):
    class Mute(type(HEAD_KINDS["parallel"])):
        first, further = HeadKind.first, HeadKind.further

    monkeypatch.setitem(HEAD_KINDS, "parallel", Mute())
    with pytest.raises(NotImplementedError, match="Mute lacks `first` and `further`"):
        generate(load_model(saved[0]), ["x"], max_new_tokens=2)
