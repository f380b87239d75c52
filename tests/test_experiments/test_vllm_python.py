"""A wrong `serving.python` is told before anything slow: the model is neither looked for nor loaded."""

import pytest

from kvbench.cli import main as cli
from kvbench.experiments import vllm_common
from kvbench.experiments.vllm_prefix_caching import run as prefix
from kvbench.vllm import environment
from kvbench.vllm.errors import ServingError
from kvbench.vllm.servers import ServerSpec

EXPERIMENTS = ("vllm_fp8", "vllm_load", "vllm_prefix_caching", "vllm_rag", "vllm_vs_compression")


class SlowError(Exception):
    """Something slow began."""


@pytest.fixture
def slow(monkeypatch):
    """What is slow raises."""

    def begun(*_, **__):
        raise SlowError

    for module, name in ((vllm_common, "locate"), (vllm_common, "make_renderer"), (prefix, "locate")):
        monkeypatch.setattr(module, name, begun)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_python_is_looked_at_first(experiment, slow, tmp_path, capsys):
    words = ["run", experiment, "serving.python=/nowhere", f"run_dir={tmp_path / 'out'}"]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kvbench: error: serving.python: there is no /nowhere; ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_check_that_comes_later_is_seen(experiment, slow, tmp_path, monkeypatch):
    monkeypatch.setattr(ServerSpec, "check", lambda self: None)
    monkeypatch.setattr(vllm_common, "max_context", lambda _: 4096)
    with pytest.raises(SlowError):
        cli.main(["run", experiment, "serving.python=/nowhere", f"run_dir={tmp_path / 'out'}"])


@pytest.mark.parametrize(
    "printed",
    ["", "{}", "[]", "3", "null", "{", '{"versions": 3, "source": "a"}', '{"versions": {}}', '{"source": "a"}',
     '{"versions": {"vllm": "1"}, "source": 3}', '{"versions": {"vllm": "1"}, "source": ["a"]}', "[" * 100_000,
     '{"versions": [["a"]], "source": null}'],
)  # fmt: skip
def test_what_runs_and_is_no_python_is_one_line(printed, tmp_path):
    (tmp_path / "printed").write_text(printed)
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ncat {tmp_path / 'printed'}\n")
    program.chmod(0o755)
    with pytest.raises(ServingError, match=r"^serving\.python: [^\n]+/python does not run; [^\n]+$"):
        environment.find(program)


def test_what_waits_for_input_gets_none(tmp_path):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nread line && exit 0\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(ServingError, match="does not run"):
        environment.find(program)


def test_an_environment_without_vllm_says_so(tmp_path):
    program = tmp_path / "python"
    program.write_text("""#!/bin/sh\necho '{"versions": {"torch": "2"}, "source": null}'\n""")
    program.chmod(0o755)
    with pytest.raises(
        ServingError, match=r"^serving\.python: there is no vLLM in the environment of [^\n]+$"
    ):
        environment.find(program)
