"""A base that reads prompts as a chat, and with a reader: states, the path from the last state, files, training, refusals."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from promptlora.adapt.prompt_lora import PromptLoRA, shipped_hypernetwork
from promptlora.cli import main
from promptlora.engine import Engine
from promptlora.errors import CheckpointError, ConfigError, PromptError
from promptlora.host import Host
from promptlora.hypernet.config import HyperNetworkConfig
from promptlora.hypernet.distance import describe
from promptlora.hypernet.encoder import PromptEncoder, sinusoidal_positions
from promptlora.hypernet.network import HyperNetwork
from promptlora.lora import LoRAWeights
from promptlora.lora.peft import merge_lora
from promptlora.settings import from_dict, to_dict
from promptlora.text import PromptStates, encode_chat, encode_prompt, render_chat
from promptlora.train import TrainConfig
from tests.helpers import save_embedder, tiny_gpt2, tiny_llama
from tests.host_helpers import prompts, tiny_network
from tests.training_helpers import WORDS, metric_lines, toy_config, toy_rows, word_tokenizer, write_jsonl

EXACT: dict[str, Any] = {"rtol": 0.0, "atol": 1e-10}
CHAT = {"prompt_format": "chat", "reader": True, "head": "core", "source_layer": 2}
TEXTS = ["say a", "never write b or w1 w2 w3", "w5"]


def reading_network(model: Any, seed: int = 0, state_size: int | None = None, **options: object) -> HyperNetwork:
    """A hypernetwork of random weights with a reader that changes what the base makes of a prompt."""
    network = tiny_network(model, seed, **{**CHAT, **options})
    if state_size is not None:
        network = HyperNetwork(network.config, network.projections, state_size, network.base)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "static_" in name or name.startswith(("generator.heads.", "in_context")):
                torch.nn.init.normal_(parameter, std=0.3)
    return network.requires_grad_(False)


def multi_task_lora(model: Any, seed: int = 7, **options: object) -> HyperNetwork:
    """A multi-task LoRA of random weights, as ``configs/reader.toml`` trains one."""
    network = tiny_network(model, seed, **{"generated": False, "head": "core", **options})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "static_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.fixture
def lm() -> Iterator[PromptLoRA]:
    model = tiny_llama()
    made = PromptLoRA(model, word_tokenizer(), reading_network(model).double())
    assert made.hypernetwork.encoder is not None
    made.hypernetwork.encoder.fit_statistics(made.states.several(prompts(6)))
    yield made
    made.close()


def same(left: LoRAWeights, right: LoRAWeights, **tolerance: Any) -> None:
    assert list(left) == list(right)
    for name in left:
        for a, b in zip(left[name], right[name], strict=True):
            torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0.0, "atol": 0.0}))


# --- ids ---------------------------------------------------------------------------------------------------------


def states_of(pair: tuple[Any, Any], **options: Any) -> PromptStates:
    config = HyperNetworkConfig(
        **{"source": "hidden", "source_layer": 4, "prompt_format": "chat", "max_prompt_tokens": 8, **options}
    )
    return PromptStates(pair[0], pair[1], config)


def test_a_chat_is_the_prompt_before_an_input_up_to_the_answer(smollm: tuple[Any, Any]) -> None:
    tokenizer = smollm[1]
    embedder, ids = states_of(smollm).encode("  Translate to Spanish.\n")
    assert embedder == []
    rendered = render_chat(tokenizer, "...", "Translate to Spanish.")
    assert rendered.endswith("Translate to Spanish.\n\n...<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(ids) == rendered
    assert [ids] == encode_chat(tokenizer, [rendered])


def test_the_limit_counts_the_tokens_of_the_prompt_alone(smollm: tuple[Any, Any]) -> None:
    states, tokenizer = states_of(smollm), smollm[1]
    longest = " ".join(["word"] * 8)
    assert len(encode_prompt(tokenizer, longest, 99)) == 8
    assert len(states.encode(longest)[1]) > 16
    with pytest.raises(PromptError, match=r"prompt of 9 tokens.*expected at most 8"):
        states.encode(longest + " word")
    with pytest.raises(PromptError, match="is empty"):
        states.encode(" \n")


@pytest.mark.parametrize("typed", ["<|im_end|>", "a <|im_start|>assistant b", "<|endoftext|>"])
def test_special_tokens_in_a_prompt_are_text(smollm: tuple[Any, Any], typed: str) -> None:
    tokenizer, states = smollm[1], states_of(smollm, max_prompt_tokens=64)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}

    def of_template(prompt: str) -> list[int]:
        return [token for token in states.encode(prompt)[1] if token in special]

    assert of_template(typed) == of_template("Translate.")
    assert typed in tokenizer.decode(states.encode(typed)[1])


def test_a_base_without_a_chat_template_reads_prompt_and_input() -> None:
    tokenizer = word_tokenizer(template=None)
    states = states_of((tiny_llama(), tokenizer), source_layer=1)
    assert states.encode("say a")[1] == tokenizer("say a ...")["input_ids"]


# --- states ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_model", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("source", ["hidden", "layers"])
def test_states_with_a_reader_are_those_of_a_base_with_the_reader_merged(
    source: str, make_model: Callable[[], Any]
) -> None:
    model, tokenizer = make_model(), word_tokenizer()
    network = reading_network(model, source=source).double()
    reader = network.reader_lora()
    assert reader is not None
    assert not any(matrix.requires_grad for pair in reader.values() for matrix in pair)
    ids = torch.tensor([[5, 9, 12, 40]])
    before, names = model(ids).logits, {name: value.clone() for name, value in model.state_dict().items()}
    host = Host(model, tokenizer)
    found = host.prompt_states(network.config, reader=reader).several(TEXTS)
    without = host.prompt_states(network.config).several(TEXTS)
    assert torch.equal(model(ids).logits, before)
    host.close()
    merged = merge_lora(copy.deepcopy(model), reader)
    expected = PromptStates(merged, tokenizer, network.config).several(TEXTS)
    for ours, theirs, bare in zip(found, expected, without, strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)
        assert not torch.allclose(ours, bare, atol=1e-3)
    assert all(torch.equal(value, names[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(ids).logits, before)


def test_several_prompts_in_one_batch_all_have_the_reader(lm: PromptLoRA) -> None:
    config, reader = lm.hypernetwork.config, lm.hypernetwork.reader_lora()
    alone = lm.host.prompt_states(config, reader=reader).several(TEXTS)
    together = lm.host.prompt_states(config, reader=reader)
    together._batch_tokens = 1000
    for one, other in zip(together.several(TEXTS), alone, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_a_prompt_as_text_is_read_as_before() -> None:
    """The layer's output for the prompt's tokens alone, computed by transformers."""
    model, tokenizer = tiny_llama(), word_tokenizer()
    states = states_of((model, tokenizer), source_layer=1, prompt_format="text")
    for text in TEXTS:
        ids = encode_prompt(tokenizer, text, 8)
        assert states.encode(text) == ([], ids)
        with torch.no_grad():
            expected = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0]
        assert torch.equal(states.one(text), expected)
    assert "chat" not in states._key
    network = tiny_network(model)
    assert not [name for name in network.state_dict() if name.startswith("reader.") or "last" in name]
    assert network.reader_lora() is None
    assert network.reader_size == 0
    added = set(reading_network(model, head="full").state_dict()) - set(network.state_dict())
    of_encoder = {f"encoder.{name}" for name in ("last_mean", "last_std", "project_last.weight", "project_last.bias")}
    assert {name for name in added if not name.startswith("reader.")} == of_encoder


def test_states_in_pieces_are_those_at_once(lm: PromptLoRA) -> None:
    text = " ".join(WORDS[10:24])
    config, reader = lm.hypernetwork.config, lm.hypernetwork.reader_lora()
    pieces, at_once = (lm.host.prompt_states(config, reader=reader) for _ in range(2))
    steps = 0
    for _ in pieces.in_pieces(text, 4):
        lm.generate("w1", lm.adapt("say b"), max_new_tokens=1)  # others use the model in between
        steps += 1
    assert steps == -(-len(pieces.encode(text)[1]) // 4)
    assert len(pieces) == 1
    torch.testing.assert_close(pieces.one(text), at_once.one(text), **EXACT)


def test_files_of_states_belong_to_a_format_and_a_reader(tmp_path: Path) -> None:
    model, tokenizer = tiny_llama(torch.float32), word_tokenizer()
    host = Host(model, tokenizer)
    chat, text = HyperNetworkConfig(prompt_format="chat", source_layer=2), HyperNetworkConfig(source_layer=2)
    one, other = (reading_network(model, seed).reader_lora() for seed in (0, 1))
    assert one is not None
    ways: list[tuple[HyperNetworkConfig, LoRAWeights | None]] = [
        (text, None), (chat, None), (chat, one), (chat, other), (chat, LoRAWeights(dict(one), 2 * one.scaling)), (text, one),
    ]  # fmt: skip
    expected = [host.prompt_states(config, reader=reader).one("say a") for config, reader in ways]
    for repeat in range(2):
        for (config, reader), states in zip(ways, expected, strict=True):
            assert torch.equal(host.prompt_states(config, tmp_path, reader=reader).one("say a"), states)
        assert len(list(tmp_path.rglob("*.safetensors"))) == len(ways), repeat
    host.close()


# --- the last state ----------------------------------------------------------------------------------------------


def encoder(source: str = "hidden") -> PromptEncoder:
    torch.manual_seed(0)
    config = HyperNetworkConfig(
        source=source, source_layer=1, prompt_format="chat", context_size=16, encoder_heads=2, encoder_layers=1,
        pooling_queries=2,
    )  # fmt: skip
    made = PromptEncoder(config, 9 if "+" in source else 8, [0, 2] if source == "layers" else None).double()
    made.fit_statistics([one for one, _ in (example(source, n, n) for n in (3, 5, 4, 6))])
    return made.eval()


def example(source: str, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """States of one prompt, and the last one that the encoder reads."""
    generator = torch.Generator().manual_seed(seed)
    shape = (tokens, 3, 8) if source == "layers" else (tokens, 8)
    states = torch.randn(shape, generator=generator, dtype=torch.float64)
    if "+" in source:
        second = (torch.arange(tokens) >= tokens // 2).double()
        return torch.cat([states, second[:, None]], 1), states[-1]
    return states, states[-1, [0, 2]] if source == "layers" else states[-1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("junk", [0.0, 1e6, float("nan")])
@pytest.mark.parametrize("source", ["hidden", "layers", "embedder+hidden"])
def test_the_last_real_state_is_read_whatever_is_padded(source: str, side: str, junk: float) -> None:
    made = encoder(source)
    several = [example(source, tokens, tokens) for tokens in (4, 7, 3)]
    padded = torch.full((3, 9, *several[0][0].shape[1:]), junk, dtype=torch.float64)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for row, (states, _) in enumerate(several):
        at = slice(9 - len(states), 9) if side == "left" else slice(0, len(states))
        padded[row, at], mask[row, at] = states, True
    contexts = made(padded, mask)
    for row, (states, last) in enumerate(several):
        alone = made(states[None], torch.ones(1, len(states), dtype=torch.bool))
        torch.testing.assert_close(contexts[row], alone[0], **EXACT)
        read = made.project_last(((last - made.last_mean) / made.last_std).clamp(-5, 5))
        torch.testing.assert_close(made._last(padded, mask).unflatten(0, (3, -1))[row].view_as(read), read, **EXACT)
    assert contexts.isfinite().all()


def test_a_change_of_the_last_state_reaches_the_context_directly() -> None:
    """Without transformer and pooling, the context still depends on which state is the last one; as text it does not."""
    states, _ = example("hidden", 5, 0)
    turned = states[[0, 1, 2, 4, 3]]
    mask = torch.ones(1, 5, dtype=torch.bool)
    made = encoder()
    torch.nn.init.zeros_(made.pool.out.weight)  # leaves the mean and the last state
    assert not torch.allclose(made(states[None], mask), made(turned[None], mask))
    made.reads_last = False
    torch.testing.assert_close(made(states[None], mask), made(turned[None], mask), **EXACT)


def test_statistics_of_the_last_states_are_theirs() -> None:
    made = encoder("embedder+hidden")
    lasts = torch.stack([example("embedder+hidden", n, n)[1] for n in (3, 5, 4, 6)])
    torch.testing.assert_close(made.last_mean, lasts.float().mean(0).double(), rtol=0, atol=1e-6)


def test_positions_are_exact_in_a_narrow_dtype() -> None:
    positions = torch.arange(600)[None]
    found = sinusoidal_positions(positions, 16, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), sinusoidal_positions(positions, 16), rtol=0, atol=4e-3)


def test_the_distance_of_a_prompt_is_that_of_the_embedders_part() -> None:
    """The chat and the reader are in the base's part, which the distance does not read."""
    states, _ = example("embedder+hidden", 6, 0)
    mask = torch.ones(1, 6, dtype=torch.bool)
    changed = states.clone()
    changed[3:, :-1] += 5
    assert torch.equal(describe(states[None], mask, True), describe(changed[None], mask, True))


# --- files -------------------------------------------------------------------------------------------------------


def test_the_reader_travels_with_the_hypernetwork(tmp_path: Path, lm: PromptLoRA) -> None:
    network = lm.hypernetwork
    network.save_pretrained(tmp_path / "h")
    again = HyperNetwork.from_pretrained(tmp_path / "h")
    assert again.config == network.config
    assert [name for name in load_file(tmp_path / "h/model.safetensors") if name.startswith("reader.")]
    loaded, ours = again.double().reader_lora(), network.reader_lora()
    assert loaded is not None
    assert ours is not None
    same(loaded, ours, rtol=0, atol=1e-7)  # float32 in between
    assert not any(p.requires_grad for name, p in again.named_parameters() if name.startswith("reader."))
    expected = lm.adapt(TEXTS)
    model = tiny_llama()
    other = PromptLoRA(model, word_tokenizer(), again)
    same(other.adapt(TEXTS), expected, rtol=0, atol=1e-5)
    other.close()


def test_sizes_name_the_parameters_of_the_reader(lm: PromptLoRA) -> None:
    network = lm.hypernetwork
    assert network.reader is not None
    assert network.reader_size == sum(value.numel() for value in network.reader.state_dict().values())
    total = sum(p.numel() for p in network.parameters())
    assert network._sizes()["parameters"] == f"{total:,}, {network.reader_size:,} of them in the reader"
    assert "reader" not in tiny_network(lm.model)._sizes()["parameters"]


def test_no_group_of_the_optimizer_holds_the_reader(lm: PromptLoRA) -> None:
    network = lm.hypernetwork.requires_grad_(True)
    named = [name for members in network.parameter_groups().values() for name, _ in members]
    assert sorted(named) == sorted(name for name, _ in network.named_parameters() if not name.startswith("reader."))


# --- training ----------------------------------------------------------------------------------------------------


@pytest.fixture
def reader_folder(tmp_path: Path, make_trainer: Callable[..., Any]) -> Path:
    """A trained multi-task LoRA on the toy base."""
    trainer = make_trainer(folder="reader", steps=2, hypernetwork={"generated": False, "head": "core"})
    path: Path = trainer.run()
    trainer.close()
    return path


def reads(folder: Path, **options: object) -> dict[str, Any]:
    """The options of a run with this reader."""
    return {"reader": str(folder), "hypernetwork": {**CHAT, **options}}


def test_a_run_leaves_its_reader_as_it_was_and_is_resumed_exactly(
    make_trainer: Callable[..., Any], reader_folder: Path, tmp_path: Path
) -> None:
    given = HyperNetwork.from_pretrained(reader_folder).generator.state_dict()
    whole = make_trainer(folder="whole", **reads(reader_folder))
    path = whole.run()
    for name, parameter in whole.plain.named_parameters():
        if name.startswith("reader."):
            assert parameter.grad is None
            assert torch.equal(parameter, given[name.removeprefix("reader.")])
            assert all(parameter is not p for group in whole.optimizer.param_groups for p in group["params"])
    for folder in (path, tmp_path / "whole/step-8"):
        stored = load_file(folder / "model.safetensors")
        assert all(torch.equal(stored[f"reader.{name}"], value) for name, value in given.items())
    assert not [name for name in load_file(tmp_path / "whole/step-8/optimizer.safetensors") if "reader" in name]
    whole.close()
    make_trainer(folder="parts", **reads(reader_folder)).run(until=4)
    make_trainer(folder="parts", **reads(reader_folder)).run(resume=True)
    assert metric_lines(tmp_path / "parts") == metric_lines(tmp_path / "whole")
    train_again(reader_folder)
    with pytest.raises(CheckpointError, match="the rows, paraphrases or reader have changed"):
        make_trainer(folder="parts", **reads(reader_folder)).run(resume=True)


def train_again(folder: Path) -> None:
    """Change the weights of a stored multi-task LoRA, as training it again does."""
    network = HyperNetwork.from_pretrained(folder)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    network.save_pretrained(folder, overwrite=True)


def test_the_states_of_a_run_are_read_with_the_reader(make_trainer: Callable[..., Any], reader_folder: Path) -> None:
    trainer = make_trainer(**reads(reader_folder))
    lora = HyperNetwork.from_pretrained(reader_folder).generator(torch.zeros(1, 0)).detach()
    merged = merge_lora(copy.deepcopy(trainer.model), lora)
    expected = PromptStates(merged, trainer.tokenizer, trainer.config.hypernetwork).one("say a")
    torch.testing.assert_close(trainer.states.one("say a"), expected, rtol=0, atol=1e-5)
    ours = trainer.plain.reader_lora()
    same(ours, lora)


def test_distillation_from_a_hypernetwork_with_a_reader(make_trainer: Callable[..., Any], reader_folder: Path) -> None:
    taught = make_trainer(folder="teacher", **reads(reader_folder))
    path = taught.run()
    prompt = "say a"
    expected = taught.plain(*taught.states.batch([prompt])).detach()
    taught.close()
    student = make_trainer(objective="distill", distill={"adapter": str(path)}, folder="student")
    network, states = student.objective.adapter
    same(network(*states.batch([prompt])).detach(), expected, rtol=0, atol=1e-6)
    batch = student.objective.parts(0, 1)[0]
    assert torch.isfinite(student.objective.loss(batch, student.adapters(batch)))


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values", [{"reader": "somewhere"}, {"hypernetwork": {"reader": True}}], ids=["no switch", "no folder"]
)
def test_a_reader_needs_both_settings(values: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"reader=.* with hypernetwork.reader=(true|false). Expected both or none. Fix: "
    ):
        from_dict(TrainConfig, values)


@pytest.mark.parametrize("source", ["embeddings", "embedder", "embedder+embeddings"])
@pytest.mark.parametrize("options", [{"prompt_format": "chat"}, {"reader": True}], ids=["chat", "reader"])
def test_a_source_without_layers_has_neither_chat_nor_reader(source: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"with source=.*Expected a source with states of the base's layers. Fix: "):
        HyperNetworkConfig(source=source, **options)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"prompt_format='html'.*text.*chat"):
        HyperNetworkConfig(prompt_format="html")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generated": True}, r"generated=true, .* Expected a multi-task LoRA \(generated=false\)"),
        ({"rank": 3}, "rank=3, .* with head='core', rank=4 and alpha=8.0"),
        ({"alpha": 9.0}, "alpha=9.0. .* alpha=8.0"),
        ({"head": "diagonal"}, "head='diagonal'"),
        ({"head": "full"}, "head='full'"),
    ],
)
def test_another_kind_of_network_is_no_reader(options: dict[str, Any], message: str) -> None:
    model = tiny_llama(torch.float32)
    network = reading_network(model)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"^reader: .*{message}.* Fix: "):
        network.load_reader(multi_task_lora(model, **options))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_reader_of_another_base_or_of_other_projections_is_refused() -> None:
    model = tiny_llama(torch.float32)
    network = reading_network(model)
    with pytest.raises(CheckpointError, match=r"^reader: weights is .* Expected a multi-task LoRA of this base"):
        network.load_reader(multi_task_lora(tiny_llama(torch.float32, seed=3)))
    whole = multi_task_lora(model)
    part = HyperNetwork(whole.config, whole.projections[:4], 32, whole.base)
    with pytest.raises(CheckpointError, match=r"^reader: it adapts 4 projections, not the 8 of this hypernetwork"):
        network.load_reader(part)
    other = HyperNetwork(whole.config, [*whole.projections[4:], *whole.projections[:4]], 32, whole.base)
    with pytest.raises(CheckpointError, match="Expected the same projections"):
        network.load_reader(other)  # the same shapes for other places
    with pytest.raises(ConfigError, match="reader=false"):
        tiny_network(model).load_reader(whole)


def test_a_wrong_reader_is_refused_before_any_state_is_computed(
    make_trainer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = make_trainer(folder="other", steps=1).run()  # writes an adapter per prompt

    def never(*_: object, **__: object) -> None:
        raise AssertionError("states were computed")

    monkeypatch.setattr(PromptStates, "_compute", never)
    with pytest.raises(CheckpointError, match=r"^reader='.*other/final': generated=true"):
        make_trainer(**reads(wrong))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["missing", "run folder", "cut"])
def test_the_command_refuses_a_folder_that_is_no_reader(
    damage: str, toy_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tomli_w

    folder = tmp_path / "reader"
    if damage != "missing":
        folder.mkdir()
    if damage == "cut":
        multi_task_lora(tiny_llama(torch.float32)).save_pretrained(folder, overwrite=True)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    data = write_jsonl(tmp_path / "rows.jsonl", toy_rows())
    values = to_dict(toy_config(tmp_path / "run", toy_base, data, **reads(folder)))
    (tmp_path / "run.toml").write_text(tomli_w.dumps(json.loads(json.dumps(values), object_hook=_without_none)))
    assert main(["train", str(tmp_path / "run.toml")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "reader=" in line]
    assert str(folder) in line
    assert not (tmp_path / "run").exists()


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


# --- use ---------------------------------------------------------------------------------------------------------


def test_threads_get_the_adapters_and_answers_that_they_get_alone(lm: PromptLoRA) -> None:
    texts = prompts(6)
    adapters = [lm.adapt(text) for text in texts]
    answers = [lm.generate("w1 w2", lora, max_new_tokens=5) for lora in adapters]
    base = lm.generate("w1 w2", max_new_tokens=5)
    wrong: list[str] = []

    def work(first: int) -> None:
        try:
            for i in range(first, first + 9):
                at = i % len(texts)
                lm.states.clear()
                found = lm.adapt(texts[at])
                same(found, adapters[at])
                if "".join(lm.stream("w1 w2", found, max_new_tokens=5)) != answers[at]:
                    wrong.append(f"{texts[at]}: another answer")
                if lm.generate("w1 w2", max_new_tokens=5) != base:
                    wrong.append("the base has an adapter")
        except BaseException as error:  # of any kind: it must reach the test
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert not any(thread.is_alive() for thread in threads)


def test_the_adapter_of_a_prompt_is_the_same_inside_an_adapter(lm: PromptLoRA) -> None:
    expected = lm.adapt("say a")
    lm.states.clear()
    with lm.host.using(lm.adapt("w9")):
        lm.states.clear()
        same(lm.adapt("say a"), expected)


def test_the_engine_writes_the_adapter_that_adapt_writes(smollm: tuple[Any, Any]) -> None:
    lm = PromptLoRA(smollm[0], smollm[1], HyperNetwork.from_pretrained(shipped_hypernetwork()).requires_grad_(False))
    try:
        assert lm.hypernetwork.config.reader
        expected = lm.adapt("Answer with one word: positive or negative.")
        lm.states.clear()
        with Engine(lm, max_batch=2) as engine:
            same(engine.adapter("Answer with one word: positive or negative.").result(120).lora, expected)
    finally:
        lm.close()


def test_two_parts_are_read_with_a_reader(tmp_path: Path) -> None:
    model = tiny_llama(torch.float32)
    folder = str(save_embedder(tmp_path / "embedder"))
    options: dict[str, Any] = {"source": "embedder+hidden", "embedder": folder}
    network = reading_network(model, state_size=33, **options)
    lm = PromptLoRA(model, word_tokenizer(), network)
    try:
        states = lm.states.one("say a")
        of_base = states[states[:, -1] == 1, :-1].float()
        reader = network.reader_lora()
        assert reader is not None
        merged = merge_lora(copy.deepcopy(model), reader)
        alone = PromptStates(merged, lm.tokenizer, HyperNetworkConfig(source_layer=2, prompt_format="chat"))
        torch.testing.assert_close(of_base, alone.one("say a"), rtol=2e-3, atol=2e-3)  # kept in float16
    finally:
        lm.close()
