"""Every check of the configuration, its round trips, its overrides and what counts as identity."""

import dataclasses
import json
import re
import sys
import types
import typing

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_dict, config_flags

from mtp_jax import config as config_lib
from mtp_jax.config import (
    Config,
    MixtureConfig,
    ModelConfig,
    differences,
    dumps,
    flatten,
    free_on_resume,
    from_config_dict,
    from_dict,
    to_config_dict,
    to_dict,
    with_defaults,
)

SECTIONS = [field.name for field in dataclasses.fields(Config)]


def changed(**sections):
    """Returns the default config with fields changed, as changed(model={"num_heads": 8})."""
    return dataclasses.replace(Config(), **{
        section: dataclasses.replace(getattr(Config(), section), **fields) for section, fields in sections.items()})


def one(name, value):
    """Returns the default config with the field of a dotted name changed."""
    section, field = name.split(".")
    return changed(**{section: {field: value}})


def test_defaults_are_valid():
    Config().validate()


@pytest.mark.parametrize("name", [
    "model.num_heads", "model.num_layers", "model.d_model", "model.num_attention_heads", "model.num_kv_heads",
    "model.head_dim", "model.d_ff", "model.d_ff_multiple", "model.vocab_size", "model.vocab_multiple",
    "model.rope_original_window", "compute.logits_bytes", "compute.microbatches", "objective.schedule_steps",
    "data.batch_size", "data.seq_len",
    "data.validation_batches", "optimizer.schedule_steps", "train.num_steps", "train.checkpoint_every",
    "train.validate_every", "checkpoint.keep_last", "logging.log_every", "logging.profile_steps"])
@pytest.mark.parametrize("value", [0, -3])
def test_counts_are_at_least_one(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value} must be at least 1"):
        one(name, value).validate()


@pytest.mark.parametrize("name", [
    "model.extra_trunk_layers", "objective.further_weight_initial", "objective.further_weight_final",
    "objective.prompt_end", "data.num_workers", "optimizer.warmup_steps", "optimizer.weight_decay",
    "optimizer.clip_norm",
    "checkpoint.keep_every", "logging.profile_start", "logging.peak_tflops"])
def test_what_may_be_zero_is_not_negative(name):
    one(name, 0).validate()
    with pytest.raises(ValueError, match=rf"^{name}=-1 must be at least 0"):
        one(name, -1).validate()


@pytest.mark.parametrize("name", ["model.rope_theta", "model.norm_eps", "model.init_std", "optimizer.learning_rate",
                                  "optimizer.eps", "model.rope_factor", "model.rope_low_freq_factor",
                                  "model.rope_high_freq_factor"])
def test_what_is_multiplied_or_divided_by_is_above_zero(name):
    with pytest.raises(ValueError, match=rf"^{name}=0.0 must be at least"):
        one(name, 0.0).validate()


@pytest.mark.parametrize("name", ["b1", "b2"])
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.1])
def test_decays_of_moments_are_below_1(name, value):
    with pytest.raises(ValueError, match=rf"^optimizer.{name}={value} must be at least 0 and below 1"):
        config_lib.OptimizerConfig(**{name: value}).validate(1000)


@pytest.mark.parametrize("name", ["optimizer.decay_ratio", "optimizer.decay_fraction", "objective.switch_fraction"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_shares_lie_between_0_and_1(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value} must lie in \[0, 1\]"):
        one(name, value).validate()


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 2.0])
def test_validation_leaves_files_on_both_sides(value):
    with pytest.raises(ValueError, match=rf"^data.validation_fraction={value} must lie between 0 and 1"):
        one("data.validation_fraction", value).validate()


@pytest.mark.parametrize("name", ["data.seed", "train.seed"])
def test_seeds_fit_every_generator(name):
    one(name, 2**32 - 1).validate()
    for value in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"^{name}={value} must lie in \[0, 2\*\*32\)"):
            one(name, value).validate()


FLOATS = [f"{section}.{field}" for section in SECTIONS
          for field, hint in typing.get_type_hints(type(getattr(Config(), section))).items() if hint is float]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_is_nan_or_infinite(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value} "):
        one(name, value).validate()


@pytest.mark.parametrize("name, value, hint", [
    ("model.unembedding", "share", "shared"), ("model.param_dtype", "float23", "float32"),
    ("model.dtype", "bfloat", "bfloat16"), ("compute.remat", "ful", "full"), ("compute.run_heads", "scann", "scan"),
    ("objective.reduction", "summ", "sum"), ("optimizer.schedule", "cosin", "cosine"),
    ("logging.progress", "bars", "bar")])
def test_choices_suggest_the_nearest(name, value, hint):
    with pytest.raises(ValueError, match=rf'^{name}=\'{value}\' is not one of .*Did you mean "{hint}"\?'):
        one(name, value).validate()


def test_a_choice_near_none_suggests_none():
    with pytest.raises(ValueError, match=r"\['dots', 'full', 'none'\]\.$"):
        one("compute.remat", "zzz").validate()


@pytest.mark.parametrize("config, message", [
    (changed(model={"d_model": 250}), r"model.d_model=250 .*model.num_attention_heads=4.*set model.head_dim"),
    (changed(model={"head_dim": 7}), r"model.head_dim=7 is odd.*choose an even"),
    (changed(model={"d_model": 12}), r"model.head_dim=3 is odd"),
    (changed(model={"num_kv_heads": 3}), r"model.num_attention_heads=4 .*model.num_kv_heads=3"),
    (changed(model={"rope_factor": 2.0}), r"model.rope_factor=2.0 means nothing for model.rope_scaling='none'"),
    (changed(model={"rope_scaling": "yarn"}), r"model.rope_scaling='yarn'.*linear"),
    (changed(model={"rope_scaling": "llama3", "rope_low_freq_factor": 4.0}), r"model.rope_low_freq_factor=4.0 must be"),
    (changed(model={"num_kv_heads": 8}), r"model.num_attention_heads=4 .*model.num_kv_heads=8"),
    (changed(model={"tie_embedding": True, "unembedding": "replicated"}), r"model.tie_embedding=True needs "
     r"model.unembedding='shared', got 'replicated'"),
    (changed(objective={"head_weights": (1.0, 0.5)}), r"objective.head_weights=\(1.0, 0.5\) has 2 entries for "
     r"model.num_heads=4"),
    (changed(objective={"head_weights": (1.0, 1.0, 1.0, -1.0)}), r"objective.head_weights=.* must be >= 0"),
    (changed(objective={"head_weights": (0.0,) * 4}), r"objective.head_weights=.* one above 0"),
    (changed(objective={"head_weights": (1.0, 1.0, 1.0, float("nan"))}), r"objective.head_weights=.* finite"),
    (changed(data={"seq_len": 4}), r"data.seq_len=4 leaves head 4 no target.*data.seq_len > model.num_heads=4"),
    (changed(optimizer={"warmup_steps": 1000}), r"optimizer.warmup_steps=1000 .*1000 steps: lower it, or raise"),
    (changed(optimizer={"schedule_steps": 50}), r"optimizer.warmup_steps=100 .*50 steps"),
    (changed(compute={"microbatches": 3}), r"data.batch_size=16 .*compute.microbatches=3"),
])
def test_clashing_fields_are_both_named(config, message):
    with pytest.raises(ValueError, match=message):
        config.validate()


@pytest.mark.parametrize("config", [
    changed(model={"d_model": 250, "head_dim": 62}), changed(model={"num_kv_heads": 1}), changed(data={"seq_len": 5}),
    changed(objective={"head_weights": (0.0, 0.0, 0.0, 1.0)}), changed(model={"tie_embedding": True}),
    changed(optimizer={"warmup_steps": 5000, "schedule": "constant"}),
    changed(optimizer={"warmup_steps": 5000, "schedule_steps": 5001})])
def test_what_lies_at_the_edge_is_valid(config):
    config.validate()


def test_derived_fields():
    model = ModelConfig(d_model=256, num_attention_heads=4, vocab_size=259)
    assert (model.kv_heads, model.attention_head_dim, model.mlp_dim, model.padded_vocab_size) == (4, 64, 768, 384)
    model = ModelConfig(num_kv_heads=2, head_dim=32, d_ff=100, vocab_size=256, vocab_multiple=128)
    assert (model.kv_heads, model.attention_head_dim, model.mlp_dim, model.padded_vocab_size) == (2, 32, 100, 256)
    assert ModelConfig(d_model=4096, d_ff_multiple=256).mlp_dim == 11008  # Llama 2 7B
    with pytest.raises(ValueError, match="model.vocab_size=None is not resolved"):
        _ = ModelConfig().padded_vocab_size


@given(d_model=st.integers(1, 10_000), multiple=st.integers(1, 512))
def test_derived_mlp_width_is_the_next_multiple(d_model, multiple):
    width = ModelConfig(d_model=d_model, d_ff_multiple=multiple).mlp_dim
    assert width % multiple == 0 and 8 * d_model // 3 <= width < 8 * d_model // 3 + multiple


A, HALF = MixtureConfig("a"), MixtureConfig("b", weight=0.5)


@pytest.mark.parametrize("mixture, message", [
    ((HALF, MixtureConfig("a", weight=-0.5)), r"data.mixture of 'a': weight=-0.5 must lie in \(0, 1\]"),
    ((MixtureConfig("a", weight=0.0),), r"'a': weight=0.0 must lie .*Leave out a source"),
    ((MixtureConfig("a", weight=float("nan")),), r"'a': weight=nan must lie in"),
    ((HALF, MixtureConfig("a", weight=0.4)), r"\{'b': 0.5, 'a': 0.4\}, which sum to 0.9: .* must sum to 1"),
    ((HALF, A), r"the weights \{'b': 0.5, 'a': None\}: give all of them, or none"),
    ((A, A), r"data.mixture names \['a', 'a'\]: every source needs a name of its own"),
    ((MixtureConfig(""),), r"a source named '': give a name without spaces and slashes"),
    ((MixtureConfig("a b"),), r"a source named 'a b'"), ((MixtureConfig("a/b"),), r"a source named 'a/b'"),
    ((MixtureConfig("a", epochs=0.0),), r"'a': epochs=0.0 must be above 0"),
    ((MixtureConfig("a", epochs=-1.0),), r"'a': epochs=-1.0 must be above 0"),
    ((MixtureConfig("a", epochs=float("inf")),), r"'a': epochs=inf must be above 0, and finite; None sets no limit"),
    ((MixtureConfig("a", validation_fraction=1.5),), r"data.mixture of 'a': validation_fraction=1.5 must lie"),
    ((MixtureConfig("a", min_bytes=9, max_bytes=8),), r"data.mixture of 'a': min_bytes=9 and max_bytes=8"),
])
def test_a_mixture_that_makes_no_sense_is_refused(mixture, message):
    with pytest.raises(ValueError, match=message):
        changed(data={"mixture": mixture}).validate()


@pytest.mark.parametrize("name, value", [
    ("source", "files"), ("path", "x"), ("field", "code"), ("validation_path", "x"), ("extensions", (".py",)),
    ("min_bytes", 1), ("max_bytes", 1), ("drop_duplicates", True), ("skip_invalid", True)])
def test_what_belongs_into_the_entries_is_not_set_beside_the_mixture(name, value):
    with pytest.raises(ValueError, match=rf"data.{name}={re.escape(repr(value))} is not read beside data.mixture: set"):
        changed(data={"mixture": (A,), name: value}).validate()


@pytest.mark.parametrize("mixture", [
    (A,), (A, MixtureConfig("b")), (HALF, MixtureConfig("a", weight=0.5, epochs=0.5)),
    tuple(MixtureConfig(f"s{i}", weight=0.1) for i in range(10)), (MixtureConfig("a", weight=1e-9), MixtureConfig(
        "b", weight=1.0))])
def test_mixtures_that_make_sense(mixture):
    changed(data={"mixture": mixture}).validate()


def test_parts_of_a_mixture_share_what_is_not_theirs():
    config = changed(data={"seed": 7, "validation_fraction": 0.3, "mixture": (
        MixtureConfig("a", path="x", field="code"), MixtureConfig("b", source="jsonl", validation_fraction=0.1))}).data
    one, other = config.parts["a"], config.parts["b"]
    assert (one.source, one.path, one.field, one.validation_fraction, one.seed) == ("files", "x", "code", 0.3, 7)
    assert (other.source, other.path, other.field, other.validation_fraction) == ("jsonl", "", "text", 0.1)
    assert one.mixture == other.mixture == () and list(changed(data={"source": "tfds"}).data.parts) == ["tfds"]


def test_horizons_follow_num_steps_unless_set():
    assert changed(train={"num_steps": 7}).learning_rate_horizon == 7
    assert changed(train={"num_steps": 7}).objective_horizon == 7
    config = changed(train={"num_steps": 7}, optimizer={"schedule_steps": 5}, objective={"schedule_steps": 6})
    assert (config.learning_rate_horizon, config.objective_horizon) == (5, 6)


def values_of(hint):
    """Returns a strategy of values of a field's type."""
    if isinstance(hint, types.UnionType):
        return st.one_of(*(values_of(arg) for arg in typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        inner, *rest = typing.get_args(hint)
        if rest == [Ellipsis]:
            return st.lists(values_of(inner), max_size=3).map(tuple)
        return st.tuples(values_of(inner), *map(values_of, rest))
    if dataclasses.is_dataclass(hint):
        return st.builds(hint, **{name: values_of(kind) for name, kind in typing.get_type_hints(hint).items()})
    return {int: st.integers(-2**40, 2**40), float: st.floats(allow_nan=False, allow_infinity=False), str: st.text(),
            bool: st.booleans(), type(None): st.none(),
            typing.Any: st.one_of(st.none(), st.text(), st.tuples(st.text(), st.text()))}[hint]


@st.composite
def configs(draw):
    """Draws a config of the right types, not a valid one."""
    return Config(**{section: draw(st.builds(cls, **{name: values_of(hint)
                                                     for name, hint in typing.get_type_hints(cls).items()}))
                     for section, cls in ((name, type(getattr(Config(), name))) for name in SECTIONS)})


@given(configs())
def test_round_trip_through_json(config):
    assert from_dict(json.loads(dumps(config))) == config


@given(configs())
def test_round_trip_through_config_dict(config):
    assert from_config_dict(to_config_dict(config)) == config


def test_json_text_holds_every_field_and_extra_facts():
    values = json.loads(dumps(Config(), version="1.2.3", corpus_hash="ab"))
    assert values["version"] == "1.2.3" and values["corpus_hash"] == "ab"
    assert {k: set(v) for k, v in values.items() if k in SECTIONS} == {k: set(v) for k, v in to_dict(Config()).items()}
    assert dumps(Config()).endswith("}\n")


def test_what_is_left_out_takes_its_default():
    assert from_dict({"model": {"num_heads": 2}}) == changed(model={"num_heads": 2})


@pytest.mark.parametrize("values, message", [
    ({"modle": {}}, r'config.modle is unknown. Did you mean "model"\?'),
    ({"model": {"num_head": 2}}, r'config.model.num_head is unknown. Did you mean "num_heads"\?'),
    ({"model": {"xyzzy": 2}}, r"config.model.xyzzy is unknown.$"),
    ({"model": 3}, r"config.model=3 must hold fields"),
    ({"model": {"num_heads": "4"}}, r"model.num_heads='4' must be of type int, got str"),
    ({"model": {"num_heads": 4.0}}, r"model.num_heads=4.0 must be of type int, got float"),
    ({"model": {"num_heads": True}}, r"model.num_heads=True must be of type int, got bool"),
    ({"model": {"num_heads": None}}, r"model.num_heads=None must be of type int, got NoneType"),
    ({"model": {"tie_embedding": 1}}, r"model.tie_embedding=1 must be of type bool, got int"),
    ({"model": {"rope_theta": True}}, r"model.rope_theta=True must be of type float, got bool"),
    ({"objective": {"head_weights": 1.0}}, r"objective.head_weights=1.0 must be a list"),
    ({"objective": {"head_weights": ["a"]}}, r"objective.head_weights='a' must be of type float"),
    ({"data": {"mixture": [{"name": "a", "wieght": 1.0}]}}, r'mixture.wieght is unknown. Did you mean "weight"\?'),
    ({"data": {"mixture": [{"weight": 1.0}]}}, r"data.mixture: \{'weight': 1.0\} has no 'name'"),
    ({"data": {"mixture": ["a"]}}, r"data.mixture='a' must hold fields, such as \{'name': ...\}"),
    ({"data": {"mixture": {"name": "a"}}}, r"data.mixture=\{'name': 'a'\} must be a list"),
    ({"data": {"mixture": [{"name": "a", "epochs": "2"}]}}, r"data.mixture.epochs='2' must be of type float, got str"),
    ({"parallel": {"rules": [["batch"]]}}, r"parallel.rules=\['batch'\] must have 2 entries"),
    ({"compute": {"scan_layers": "yes"}}, r"compute.scan_layers='yes' must be of type bool"),
])
def test_wrong_names_and_types_are_refused_by_name(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(values)


def test_config_dict_refuses_new_fields_and_unknown_sections():
    values = to_config_dict(Config())
    with pytest.raises(AttributeError, match='Did you mean "num_heads"'):
        values.model.num_head = 3
    with pytest.raises(ValueError, match='config.modle is unknown. Did you mean "model"'):
        from_config_dict(config_dict.ConfigDict({"modle": {"num_heads": 3}}))


def overridden(*arguments, monkeypatch):
    """Returns the config that a command line makes of the default."""
    monkeypatch.setattr(sys, "argv", ["program", *arguments])
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_dict("config", to_config_dict(Config()), flag_values=values)
    values(sys.argv)
    return from_config_dict(holder.value)


@pytest.mark.parametrize("argument, name, value", [
    ("model.num_heads=8", "model.num_heads", 8), ("model.num_kv_heads=2", "model.num_kv_heads", 2),
    ("compute.scan_layers=true", "compute.scan_layers", True), ("compute.scan_layers=false", "compute.scan_layers",
                                                                False),
    ("model.tie_embedding=true", "model.tie_embedding", True), ("optimizer.learning_rate=1e-3",
                                                                "optimizer.learning_rate", 1e-3),
    ("optimizer.learning_rate=1", "optimizer.learning_rate", 1.0), ("data.path=src/**/*.py", "data.path",
                                                                    "src/**/*.py"),
    ("objective.head_weights=1,0.5,0,1", "objective.head_weights", (1.0, 0.5, 0.0, 1.0)),
    ("objective.head_weights=(1,0.5,0,1)", "objective.head_weights", (1.0, 0.5, 0.0, 1.0)),
    ("train.trainable=heads/*", "train.trainable", ("heads/*",)),
    ("init_from.heads=(1,'fresh')", "init_from.heads", (1, "fresh")),
    ("parallel.rules=(('batch','data'),('embed',None))", "parallel.rules", (("batch", "data"), ("embed", None))),
    ("parallel.mesh=data:2,fsdp:4", "parallel.mesh", "data:2,fsdp:4"),
    ("data.mixture=({'name':'a','path':'x','weight':1},)", "data.mixture",
     (dataclasses.asdict(MixtureConfig("a", path="x", weight=1.0)),)),
])
def test_overrides_take_the_type_of_the_field(argument, name, value, monkeypatch):
    config = overridden(f"--config.{argument}", monkeypatch=monkeypatch)
    assert differences(Config(), config) == {name: (flatten(Config())[name], value)}
    assert type(flatten(config)[name]) is type(value)


@pytest.mark.parametrize("argument", ["train.num_steps=1.5", "model.vocab_size=many", "compute.scan_layers=maybe",
                                      "optimizer.learning_rate=fast"])
def test_overrides_of_a_wrong_type_are_refused(argument, monkeypatch):
    with pytest.raises(flags.IllegalFlagValueError, match=argument.split("=")[0]):
        overridden(f"--config.{argument}", monkeypatch=monkeypatch)


def test_an_experiment_sets_a_mixture_as_dicts():
    values = to_config_dict(Config())
    values.data.mixture = ({"name": "a", "source": "jsonl", "path": "x", "epochs": 4}, {"name": "b"})
    assert from_config_dict(values) == changed(data={"mixture": (
        MixtureConfig("a", source="jsonl", path="x", epochs=4.0), MixtureConfig("b"))})


@pytest.mark.parametrize("value, message", [
    ("({'name':", r"""data.mixture="\({'name':" must hold fields, such as .* are quotes and brackets all there"""),
    ("files", "data.mixture='files' must hold fields"),
    ("({'name':'a','path':3},)", "data.mixture.path=3 must be of type str"),
    ("({'name':'a','epoch':3},)", 'mixture.epoch is unknown. Did you mean "epochs"')])
def test_a_mixture_that_cannot_be_read_is_refused(value, message, monkeypatch):
    with pytest.raises(ValueError, match=message):
        overridden(f"--config.data.mixture={value}", monkeypatch=monkeypatch)


@pytest.mark.parametrize("argument, error, hint", [
    ("model.num_head=8", AttributeError, "num_heads"), ("modle.num_heads=8", KeyError, "model")])
def test_misspelt_overrides_suggest_the_name(argument, error, hint, monkeypatch):
    with pytest.raises(error, match=f'Did you mean "{hint}"'):
        overridden(f"--config.{argument}", monkeypatch=monkeypatch)


def test_differences_name_both_values_and_missing_fields():
    new = changed(model={"num_heads": 8}, train={"num_steps": 5})
    assert differences(Config(), Config()) == {}
    assert differences(Config(), new) == {"model.num_heads": (4, 8), "train.num_steps": (1000, 5)}
    older = json.loads(dumps(Config(), version="0.0.1"))
    del older["model"]["qk_norm"]
    assert differences(older, Config()) == {"model.qk_norm": (None, False)}


def test_what_an_older_config_lacks_is_filled_with_defaults():
    config = changed(model={"num_heads": 2}, data={"mixture": (MixtureConfig("a", path="x"), MixtureConfig("b"))})
    older = json.loads(dumps(config, version="0.0.1"))
    del older["model"]["qk_norm"], older["logging"], older["data"]["mixture"][0]["epochs"], older["data"]["tokenizer"]
    assert differences(older, config) and differences(with_defaults(older), config) == {}
    assert with_defaults(older)["version"] == "0.0.1" and with_defaults({}) == to_dict(Config())


def test_json_lists_and_tuples_are_the_same_value():
    config = changed(objective={"head_weights": (1.0, 0.5, 0.0, 1.0)})
    assert differences(json.loads(dumps(config)), config) == {}


def test_identity_is_the_model_the_data_the_optimizer_and_the_seeds():
    identity = {name for name in flatten(Config()) if not free_on_resume(name)}
    whole = {name for name in flatten(Config()) if name.split(".")[0] in ("model", "objective", "optimizer")}
    data = {f"data.{name}" for name in ("source", "path", "tokenizer", "batch_size", "seq_len", "seed",
                                        "field", "validation_path", "validation_fraction", "extensions", "min_bytes",
                                        "max_bytes", "drop_duplicates", "skip_invalid", "mixture", "options")}
    assert identity == whole | data | {"train.seed", "train.trainable"}


def test_every_name_that_is_free_on_resume_exists():
    assert set(config_lib.FREE_ON_RESUME) <= set(flatten(Config())) | set(SECTIONS)


def test_configs_are_immutable_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.num_heads = 2
    assert hash(Config()) == hash(changed()) and hash(Config()) != hash(changed(model={"num_heads": 2}))


LOOPED = {"trunk_kind": "looped", "loops": 4}
GATE = {"loop_objective": "gate"}


@pytest.mark.parametrize("sections, message", [
    ({"model": {"loops": 2}}, "model.loops=2 means nothing for model.trunk_kind='plain'"),
    ({"model": {"trunk_kind": "loop"}}, "model.trunk_kind='loop'.*Did you mean \"looped\""),
    ({"model": {**LOOPED, "loops": 0}}, "model.loops=0 must be at least 1"),
    ({"objective": GATE}, "a model of model.loops=1 has none: set model.trunk_kind='looped'"),
    ({"model": {**LOOPED, "loops": 1}, "objective": GATE, "train": {"trainable": ("gate/*",)}}, "has none"),
    ({"model": LOOPED, "objective": GATE}, r"train.trainable=\(\) names other.*set train.trainable=\('gate/\*',\)"),
    ({"model": LOOPED, "objective": GATE, "train": {"trainable": ("gate/*", "heads/*")}}, "names other parameters"),
    ({"model": LOOPED, "objective": GATE, "train": {"trainable": ("*",)}}, "names other parameters")])
def test_loops_and_their_gate(sections, message):
    with pytest.raises(ValueError, match=message):
        changed(**sections).validate()


def test_the_gate_trains_alone():
    changed(model=LOOPED, objective=GATE, train={"trainable": ("gate/*",)}).validate()
