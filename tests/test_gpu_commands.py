"""The commands of docs/gpu.md: planned for models of 8B at 32K and 128K tokens, run on tiny random ones."""

import shlex

import pandas as pd
import pytest
from kvbench_testing.docs import ROOT, shortened

from kvbench.cli import main as cli
from kvbench.cli import reproduce
from kvbench.cost.duration import duration
from kvbench.cost.hardware import hardware
from kvbench.cost.shapes import model_shape
from kvbench.runs.config import load

COMMANDS = dict(reproduce.commands((ROOT / "docs" / "gpu.md").read_text()))
MODELS = ("llama31_8b", "qwen3_8b", "mistral_7b_v03")
#: what the models' families have and the tests' other tiny models have not: heads of 128 channels in groups of 4, and
#: Llama 3.1's rotary frequencies, here changed from 1,024 positions on
EXACT = {
    "llama31_8b": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 1024,
            }
        },
    ),
    "qwen3_8b": ("qwen3", {}),
    "mistral_7b_v03": ("mistral", {}),
}  # fmt: skip


def of_model(words, model, *more):
    """The arguments of a command for another model."""
    return [*(word for word in words if not word.startswith("model=")), f"model={model}", *more]


@pytest.mark.parametrize(
    ("model", "length"),
    [
        pytest.param(
            model, length, marks=[] if (model, length) == ("llama31_8b", 131072) else pytest.mark.slow
        )
        for model in MODELS
        for length in (32768, 131072)
    ],
)
def test_every_command_is_planned(model, length, tmp_path):
    for purpose, words in COMMANDS.items():
        arguments = of_model(words, model, f"task.length=[{length}]", f"run_dir={tmp_path}")
        cfg = load(arguments)
        (found,) = duration(cfg, model_shape(model), hardware("h100_sxm"))
        assert found.prompts and found.cells > found.prompts and found.seconds > 0, purpose
        # weights of 8B in bf16, and one prompt's keys and values
        assert found.memory > 14e9 + model_shape(model).kv_bytes(length - 200), purpose


@pytest.fixture(scope="module")
def exact_model(tmp_path_factory):
    """`exact_model(name)`: folder of a random model of the family, with its groups, channels and positions."""
    from conftest import save_tiny_model

    def make(name):
        folder = tmp_path_factory.mktemp(name) / "model"
        family, settings = EXACT[name]
        save_tiny_model(folder, family, 4, 2, 0, head_dim=128, **settings)
        return folder

    return make


QUICK = ("llama31_8b", "time per token up to 64K tokens, batch 1 to 4")
RUNS = [
    pytest.param(model, purpose, marks=[] if (model, purpose) == QUICK else pytest.mark.slow)
    for model in MODELS
    for purpose in COMMANDS
]


@pytest.mark.parametrize(("model", "purpose"), RUNS)
def test_a_command_runs_on_a_model_of_the_exact_family(model, purpose, exact_model, tmp_path):
    words = ["kvbench", "run", *COMMANDS[purpose]]
    arguments = shortened(words, {"tiny": str(exact_model(model))}, tmp_path / "run")
    assert cli.main(arguments) == 0, shlex.join(arguments)
    summary = pd.read_csv(tmp_path / "run" / "summary.csv")
    assert len(summary) > 1 and not summary["n_failed"].any()
