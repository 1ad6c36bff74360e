"""Configurations: the TOML round trip, and a clear line for what does not fit."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptlora.data.config import DataConfig
from promptlora.errors import ConfigError, OutputError
from promptlora.hypernet.config import HEAD_KINDS, PROMPT_SOURCES, HyperNetworkConfig
from promptlora.settings import from_dict, load_toml, save_toml, to_dict
from promptlora.train.config import BASE_DTYPES, OptimConfig, TrainConfig, check_sources

counts = st.integers(1, 1 << 12)
above_zero = st.floats(1e-12, 1e12)
shares = st.floats(0, 1)
# TOML holds Unicode, which halves of surrogate pairs are not
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def hypernetworks(draw: st.DrawFn) -> HyperNetworkConfig:
    heads = draw(st.integers(1, 8))
    source = draw(st.sampled_from(PROMPT_SOURCES))
    return HyperNetworkConfig(
        source=source,
        embedder=draw(texts) if source.startswith("embedder") else "",
        source_layer=draw(counts),
        max_prompt_tokens=draw(counts),
        context_size=heads * draw(st.integers(1, 64)),
        encoder_layers=draw(st.integers(0, 9)),
        encoder_heads=heads,
        pooling_queries=draw(counts),
        trunk_layers=draw(st.integers(0, 9)),
        head=draw(st.sampled_from(HEAD_KINDS)),
        head_bottleneck=draw(counts),
        rank=draw(counts),
        alpha=draw(above_zero),
        static=draw(st.booleans()),
        context_flag=draw(st.booleans()),
    )


trainings = st.builds(
    TrainConfig,
    output=texts,
    data=st.builds(
        DataConfig,
        train=texts,
        split=texts,
        paraphrases=texts,
        paraphrase_share=shares,
        max_input_tokens=counts,
        max_answer_tokens=counts,
    ),
    base=texts,
    base_dtype=st.sampled_from(BASE_DTYPES),
    attention=texts,
    steps=counts,
    prompts_per_batch=counts,
    rows_per_prompt=counts,
    row_weight=st.sampled_from(["row", "token"]),
    seed=st.integers(0, 2**32 - 1),
    checkpoint_every=counts,
    keep_checkpoints=counts,
    margin_every=counts,
    activation_checkpointing=st.booleans(),
    hypernetwork=hypernetworks(),
    optim=st.builds(
        OptimConfig,
        lr=above_zero,
        head_lr_factor=above_zero,
        static_lr=above_zero,
        weight_decay=st.floats(0, 1e12),
        clip=above_zero,
        head_clip=above_zero,
        warmup=shares,
        final=shares,
    ),
)


@given(config=trainings)
def test_toml_round_trip(config, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    save_toml(config, path)
    assert load_toml(TrainConfig, path) == config
    assert from_dict(TrainConfig, to_dict(config)) == config


def test_the_round_trip_covers_every_key(tmp_path):
    smallest = TrainConfig(output="runs/a", data=DataConfig(train="rows.jsonl"))
    save_toml(smallest, tmp_path / "run.toml")
    assert load_toml(TrainConfig, tmp_path / "run.toml") == smallest
    assert set(to_dict(smallest)) == {field.name for field in dataclasses.fields(TrainConfig)}


def test_what_is_not_given_has_its_default(tmp_path):
    (tmp_path / "run.toml").write_text(
        'output = "a"\nsteps = 7\n[data]\ntrain = "b"\n[hypernetwork]\nrank = 4\nalpha = 8\n'
    )
    config = load_toml(TrainConfig, tmp_path / "run.toml")
    assert config == TrainConfig(
        output="a", steps=7, data=DataConfig(train="b"), hypernetwork=HyperNetworkConfig(rank=4, alpha=8.0)
    )
    assert isinstance(config.hypernetwork.alpha, float)  # a whole number where a float is meant
    assert config.hypernetwork.scaling == 2.0


def test_configurations_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        HyperNetworkConfig().rank = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        HyperNetworkConfig("hidden")  # type: ignore[misc]


REFUSED = {
    "a near key": ("stepz = 5", "stepz: no such key in TrainConfig; did you mean 'steps'"),
    "a near key in a table": ("[optim]\nlearning_rate = 1.0\nlr = 1.0", "optim.learning_rate: no such key"),
    "a near key below": ("[hypernetwork]\ncontex_size = 8", "hypernetwork.contex_size: .*did you mean 'context_size'"),
    "a strange key": ("xyzzy = 5", "xyzzy: no such key in TrainConfig; expected some of output, data"),
    "text for a number": ('steps = "5"', "steps='5' is a str; expected int"),
    "a float for a whole number": ("steps = 5.0", "steps=5.0 is a float; expected int"),
    "a truth for a number": ("steps = true", "steps=True is a bool; expected int"),
    "a truth for a float": ("[optim]\nlr = true", "optim.lr=True is a bool; expected float"),
    "a number for a truth": ("activation_checkpointing = 1", "activation_checkpointing=1 is a int; expected bool"),
    "a number for text": ("base = 5", "base=5 is a int; expected str"),
    "a value for a table": ("optim = 5", r"optim=5; expected a table \[optim\]"),
    "a list of tables": ("[[optim]]\nlr = 1.0", r"expected a table \[optim\]"),
    "a number beyond floats": (f"[optim]\nlr = 1{'0' * 400}", "optim.lr is too large"),
    "a number beyond Python": (f"[optim]\nlr = 1{'0' * 5000}", "not TOML"),
    "not TOML": ("steps = = 5", "not TOML"),
    "a key twice": ("steps = 5\nsteps = 6", "not TOML"),
    "no steps": ("steps = 0", "steps=0 in TrainConfig; expected a finite number above 0"),
    "a negative seed": ("seed = -1", "seed=-1 in TrainConfig; expected a whole number from 0"),
    "too large a seed": (f"seed = {2**32}", "expected a whole number from 0"),
    "infinity": ("[optim]\nlr = inf", "lr=inf in OptimConfig; expected a finite"),
    "not a number": ("[optim]\nlr = nan", "lr=nan in OptimConfig; expected a finite number"),
    "negative decay": ("[optim]\nweight_decay = -0.1", "weight_decay=-0.1"),
    "a share above 1": ("[optim]\nwarmup = 1.5", "warmup=1.5; expected a share from 0 to 1"),
    "a share that is no number": ("[optim]\nfinal = nan", "final=nan in OptimConfig; expected a finite"),
    "an unknown weight": ('row_weight = "rows"', "row_weight='rows' in TrainConfig; expected one of row, token"),
    "an unknown dtype": ('base_dtype = "fp32"', "base_dtype='fp32'.*expected one of float32, bfloat16"),
    "an unknown head": ('[hypernetwork]\nhead = "fll"', "head='fll'.*expected one of full, shared, rankwise, lowrank"),
    "an unknown source": ('[hypernetwork]\nsource = "hiden"', "expected one of embeddings, hidden"),
    "no rank": ("[hypernetwork]\nrank = 0", "rank=0 in HyperNetworkConfig"),
    "an embedder that is not read": ('[hypernetwork]\nembedder = "some/id"', "not used by source='hidden'"),
    "layer 0": ("[hypernetwork]\nsource_layer = 0", "source_layer=0 in HyperNetworkConfig"),
    "negative layers": ("[hypernetwork]\nencoder_layers = -1", "encoder_layers=-1.*expected 0 or more"),
    "heads that do not divide": (
        "[hypernetwork]\nencoder_heads = 3",
        "context_size=256 is not a multiple of encoder_heads=3",
    ),
}


REMOVED = {
    "hypernetwork": ("strength = 1.0", "strength = 0.9", "Expected 1.0"),
    "regularization": ("label_smoothing = 0.0\nl1 = 0\nprompt_dropout = 0.0", "l1 = 0.1", "Expected 0.0"),
    "distill": ('tail = "bucket"', 'tail = "renormalise"', "Expected 'bucket'"),
}


@pytest.mark.parametrize("table", REMOVED)
def test_a_removed_setting_is_ignored_where_it_has_no_effect_and_refused_where_it_has(tmp_path, table):
    neutral, other, expected = REMOVED[table]
    path = tmp_path / "run.toml"
    start = f'output = "a"\n[data]\ntrain = "b"\n[{table}]\n'
    path.write_text(start + neutral)
    assert load_toml(TrainConfig, path) == TrainConfig(output="a", data=DataConfig(train="b"))
    key = other.split(" = ")[0]
    for text in (other, f"{key} = true", f"{key} = [1]"):
        path.write_text(start + text)
        with pytest.raises(ConfigError, match=rf"{table}\.{key}=.*was removed from .*{expected}.*Fix: ") as caught:
            load_toml(TrainConfig, path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_bad_values_are_one_line_with_the_file(tmp_path, case):
    text, expected = REFUSED[case]
    lines = text.splitlines()
    top = [line for line in lines if not line.startswith("[")] if "[" not in text else []
    tables = [] if top else lines
    path = tmp_path / "run.toml"
    path.write_text("\n".join(['output = "a"', *top, *tables, "[data]", 'train = "b"']))
    with pytest.raises(ConfigError, match=expected) as caught:
        load_toml(TrainConfig, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[data]\ntrain = "b"', "output is missing"),
        ('output = "a"', "data.train is missing"),
        ('output = "a"\n[data]\nsplit = "x"', "data.train is missing"),
        ('output = ""\n[data]\ntrain = "b"', "output is missing"),
        ('output = "a"\n[data]\ntrain = "b"\nparaphrase_share = -0.1', "paraphrase_share=-0.1"),
        ('output = "a"\n[data]\ntrain = "b"\nmax_input_tokens = 0', "max_input_tokens=0 in DataConfig"),
        ('output = "a"\ndata = []', "data=.*expected a table"),
    ],
)
def test_missing_keys_and_data_are_named(tmp_path, text, expected):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        check_sources(load_toml(TrainConfig, tmp_path / "run.toml"))


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"none.toml: no such file"):
        load_toml(TrainConfig, tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="no such file"):
        load_toml(TrainConfig, tmp_path)
    (tmp_path / "latin.toml").write_bytes('output = "\xe9"'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.toml: not UTF-8"):
        load_toml(TrainConfig, tmp_path / "latin.toml")


def test_a_configuration_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    config = HyperNetworkConfig(rank=4)
    save_toml(config, tmp_path / "a.toml")
    monkeypatch.setattr("tomli_w.dumps", lambda values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_toml(HyperNetworkConfig(), tmp_path / "a.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]
    assert load_toml(HyperNetworkConfig, tmp_path / "a.toml") == config
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save_toml(config, tmp_path / "file" / "a.toml")
