"""Passwords and keys are masked, and nothing else is."""

import pytest

from kvbench.config.secrets import child_environment, is_secret, masked, masked_data

KEY = "s3cr3t-Value"


@pytest.mark.parametrize(
    "text",
    [
        f"http://user:{KEY}@host:8000/v1",
        f"cannot reach https://{KEY}@host/path?x=1: refused",
        f"postgres+async://a:{KEY}%40@h/db",
        f"vllm serve m --api-key {KEY} --port 1",
        f"vllm serve m --api-key={KEY}",
        f"vllm serve m --api_key '{KEY} x'",
        f'--hf-token "{KEY}"',
        f"-token={KEY}",
        f"serving.flags=[--api-key,{KEY}]",
        f"serving.flags=['--api-key={KEY}']",
        f"non-default args: {{'api_key': ['{KEY}'], 'port': 1}}",
        f'{{"hf_token": "{KEY}", "a": 1}}',
        f"https://host/v1?api_key={KEY}&x=1",
        f"authorization: Bearer {KEY}",
        f"password={KEY}",
        f"db.password={KEY}",
        f"OPENAI_API_KEY={KEY}",
    ],
)  # fmt: skip
def test_secrets_are_masked(text):
    found = masked(text)
    assert KEY not in found and "***" in found
    assert masked(found) == found


@pytest.mark.parametrize(
    "text",
    [
        "decode.first_token=compressed budget.tokens=[128] task.max_new_tokens=3",
        "http://127.0.0.1:8000/v1/models", "a@b.c, https://host/@user/x", "--max-num-batched-tokens 2048 --port 1",
        "serving.api_key_env=OPENAI_API_KEY", "--enable-prompt-tokens-details --seed 0", "eos_token: x, key=1",
        "the pass key is 8132", "tokens: 3", "kvbench run quickstart 'method=[snapkv]'",
    ],
)  # fmt: skip
def test_everything_else_stays(text):
    assert masked(text) == text


@pytest.mark.parametrize("shape", ["sk-" + "a1" * 12, "hf_ABCDEFGHIJKLMNOPQRSTUVWX", "ghp_" + "a1" * 18])
def test_keys_that_say_what_they_are(shape):
    assert masked(f"x {shape}, y") == "x ***, y"


def test_the_values_of_secret_variables_are_masked_wherever_they_came_to(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "an-odd-looking-value")
    monkeypatch.setenv("MY_SERVICE_NAME", "harmless-value")
    assert masked("at an-odd-looking-value or harmless-value") == "at *** or harmless-value"


def test_data_is_masked_by_key_and_by_flag():
    data = {
        "flags": ["--api-key", KEY, "--port", "1", f"--hf-token={KEY}"],
        "tuple": ("--token", KEY),
        "nested": [{"password": KEY, "first_token": "dense", "api_key_env": "NAME"}],
        "base_url": f"http://u:{KEY}@h:1",
        "n": 3,
        "empty": {"api_key": None, "secret": ""},
    }
    found = masked_data(data)
    assert KEY not in repr(found)
    assert found["flags"] == ["--api-key", "***", "--port", "1", "--hf-token=***"]
    assert found["nested"] == [{"password": "***", "first_token": "dense", "api_key_env": "NAME"}]
    assert found["n"] == 3 and found["empty"] == data["empty"] and found["base_url"] == "http://***@h:1"


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "ANTHROPIC_API_KEY", "--api-key", "DB_PASSWORD"]
)
def test_names_of_secrets(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name", ["api_key_env", "first_token", "max_tokens", "PATH", "KEYBOARD", "tokenizer", "HOME"]
)
def test_names_of_other_things(name):
    assert not is_secret(name)


def test_children_get_what_they_need_and_no_secrets(monkeypatch):
    for name in (
        "HF_TOKEN",
        "HF_HOME",
        "CUDA_VISIBLE_DEVICES",
        "AWS_SECRET_ACCESS_KEY",
        "EDITOR",
        "CXX",
        "LC_ALL",
    ):
        monkeypatch.setenv(name, "value")
    found = child_environment("HF_", "CXX", ADDED="1")
    assert {"HF_HOME", "CXX", "PATH", "LC_ALL", "ADDED"} <= found.keys()
    assert not {"HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "EDITOR", "CUDA_VISIBLE_DEVICES"} & found.keys()
