"""A setting of generation counts wherever it was written: keyword, ``generation_config`` or the base's own."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from promptlora.adapt.generation import generation_options
from promptlora.errors import ConfigError, LoRAError, PromptError

pytestmark = pytest.mark.real
TEXTS = ["The cat sat on the mat", "I am very happy with it, thank you"]


@pytest.fixture
def base_settings(lm):
    """The base's own generation settings, put back after the test."""
    before = lm.model.generation_config
    lm.model.generation_config = GenerationConfig(**before.to_diff_dict())
    yield lm.model.generation_config
    lm.model.generation_config = before


def test_answers_stand_by_input_wherever_the_number_of_answers_is_written(lm):
    beams = {"num_beams": 2, "num_return_sequences": 2}
    lora = lm.adapt("Write a title.")
    expected = lm.generate(TEXTS, lora, max_new_tokens=4, **beams)
    assert len(expected) == 4
    assert expected[:2] == lm.generate(TEXTS[0], lora, max_new_tokens=4, **beams)
    assert lm.generate(TEXTS, lora, max_new_tokens=4, generation_config=GenerationConfig(**beams)) == expected
    config = GenerationConfig(num_beams=2, max_new_tokens=4)
    assert lm.generate(TEXTS, lora, num_return_sequences=2, generation_config=config) == expected


def test_a_generation_config_samples_and_ends_as_it_says(lm):
    torch.manual_seed(0)
    expected = lm.generate(TEXTS[0], do_sample=True, temperature=3.0, max_new_tokens=8)
    torch.manual_seed(0)
    config = GenerationConfig(do_sample=True, temperature=3.0, max_new_tokens=8)
    assert lm.generate(TEXTS[0], generation_config=config) == expected
    assert expected != lm.generate(TEXTS[0], max_new_tokens=8)
    short = lm.generate(TEXTS[0], max_new_tokens=2)
    assert lm.generate(TEXTS[0], max_new_tokens=2, generation_config=GenerationConfig(max_new_tokens=8)) == short
    assert list(lm.stream(TEXTS[0], generation_config=GenerationConfig(max_new_tokens=2))) != []


def test_greedy_and_single_is_the_default_whatever_the_base_says(lm, base_settings):
    expected = lm.generate(TEXTS, max_new_tokens=6)
    base_settings.do_sample, base_settings.temperature = True, 5.0
    base_settings.num_beams = base_settings.num_return_sequences = 3
    assert lm.generate(TEXTS, max_new_tokens=6) == expected


def test_a_generation_config_is_left_as_it_was(lm):
    config = GenerationConfig(num_beams=2)
    lm.generate(TEXTS[0], max_new_tokens=2, generation_config=config)
    assert config.max_new_tokens is None
    assert config.do_sample is None


def test_an_output_object_is_read_too(lm):
    expected = lm.generate(TEXTS[0], max_new_tokens=4)
    assert lm.generate(TEXTS[0], max_new_tokens=4, return_dict_in_generate=True) == expected


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"max_new_tokens": True}, PromptError, "max_new_tokens=True"),
        ({"max_new_tokens": 2.5}, PromptError, "max_new_tokens=2.5"),
        ({"max_new_tokens": 10**12}, PromptError, "max_new_tokens=1000000000000"),
        ({"batch_size": 1.5}, PromptError, "batch_size=1.5"),
        ({"generation_config": {"num_beams": 2}}, ConfigError, "generation_config: dict"),
        ({"generation_config": GenerationConfig(max_length=20)}, ConfigError, "max_length=20"),
        ({"num_beams": 10**9}, ConfigError, "num_beams=1000000000"),
        ({"num_return_sequences": 2}, ConfigError, "num_return_sequences"),
        ({"num_beam": 2}, ConfigError, "num_beam"),
        ({"adapter_index": [0.5]}, LoRAError, "without lora"),
    ],
)
def test_a_wrong_setting_is_one_line(lm, options, kind, said):
    with pytest.raises(kind, match=said) as caught:
        lm.generate(TEXTS[0], **options)
    assert "\n" not in str(caught.value)


def test_an_adapter_index_of_floats_is_refused(lm):
    with pytest.raises(LoRAError, match=r"adapter_index=\[0.9\]"):
        lm.generate(TEXTS[0], lm.adapt("Write a title."), adapter_index=[0.9])


def test_a_stream_and_a_chat_have_one_answer(lm):
    config = GenerationConfig(num_beams=2, num_return_sequences=2, max_new_tokens=2)
    with pytest.raises(ConfigError, match="stream: num_beams=2"):
        next(iter(lm.stream(TEXTS[0], generation_config=config)))
    with pytest.raises(ConfigError, match="one answer"):
        lm.chat([{"role": "user", "content": TEXTS[0]}], generation_config=config)


def test_keywords_come_before_the_generation_config():
    made = generation_options({"num_beams": 3, "generation_config": GenerationConfig(num_beams=2)}, None, 9, 0)
    assert made["generation_config"].num_beams == 3
    assert made["generation_config"].max_new_tokens == 9
