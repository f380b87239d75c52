"""kvbench.vllm and the experiments on vLLM servers start without torch and without LangChain."""

import pkgutil
import subprocess
import sys

from kvbench import experiments, vllm

MODULES = [f"kvbench.vllm.{module.name}" for module in pkgutil.iter_modules(vllm.__path__)]
ROOMS = [
    f"kvbench.experiments.{module.name}"
    for module in pkgutil.iter_modules(experiments.__path__)
    if module.name.startswith("vllm_")
]


def test_no_torch_and_no_langchain():
    assert len(MODULES) > 10 and len(ROOMS) > 4
    blocked = ("torch", "transformers", "langchain_core", "langgraph")
    code = f"import importlib, sys\nsys.modules |= dict.fromkeys({blocked})\n"
    code += "".join(f"importlib.import_module({name!r})\n" for name in [*MODULES, *ROOMS])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
