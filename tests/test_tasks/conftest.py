"""Small tokenizers in the manner of the supported families, with their chat templates."""

import random

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kvbench.tasks import Renderer, prose
from kvbench.tasks.words import all_words

# a system turn of its own where none is given, as SmolLM2 and Qwen2.5
CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# writes its own BOS, strips messages, always has a system turn in front, with a date, as Llama 3.1
LLAMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] | trim %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n{{ system }}<|eot_id|>"
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# no turn for the system, its text goes in front of the last message, as Mistral
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "[INST] {{ system if loop.last else '' }}{{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
GPT_SPLIT = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def _corpus() -> list[str]:
    rng = random.Random(0)
    source = prose.words(rng)
    lines = [" ".join(next(source) for _ in range(12)) for _ in range(300)]
    lines += [f"{line.rstrip('.')}.\n{line}  {line}\n\n" for line in lines[:100]]
    return lines + [" ".join(rng.sample(all_words(), 12)) for _ in range(600)]


def _train(core: Tokenizer, special: list[str], alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=6000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(_corpus(), trainer)
    return core


def _chatml() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    _train(core, ["<|im_start|>", "<|im_end|>"], sorted(pre_tokenizers.ByteLevel.alphabet()))
    return _wrap(core, CHATML, "<|im_start|>", "<|im_end|>")


def _llama3() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(GPT_SPLIT, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    _train(core, special, sorted(pre_tokenizers.ByteLevel.alphabet()))
    bos = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), bos])
    return _wrap(core, LLAMA3, "<|begin_of_text|>", "<|eot_id|>")


def _mistral() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"] + [f"<0x{byte:02X}>" for byte in range(256)]
    _train(core, special, [])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrap(core, MISTRAL, "<s>", "</s>")


def _wrap(core: Tokenizer, template: str, bos: str, eos: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """A trained tokenizer of 6000 tokens per style."""
    return {"chatml": _chatml(), "llama3": _llama3(), "mistral": _mistral()}


@pytest.fixture(scope="session")
def renderer(tokenizers) -> Renderer:
    """The chat template and tokenizer in the manner of the embedded model."""
    return Renderer(tokenizers["chatml"])


@pytest.fixture(scope="session")
def byte_renderer() -> Renderer:
    """One token per byte and no template: prompts that no other package's version can change."""
    core = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Renderer(PreTrainedTokenizerFast(tokenizer_object=core), chat_template=False)
