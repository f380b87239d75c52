"""Package list only; everything else is in pyproject.toml.

`kernels/`, `experiments/` and `conf/` are top-level folders for people and subpackages of kvbench for Python.
setuptools maps a folder to a package name but finds no packages under a mapped name: they are listed here. Of
`results/` the summaries of the committed runs come along, which claims are checked against.
"""

from setuptools import find_packages, setup

MAPPED = ("kernels", "experiments", "conf", "results")

packages = find_packages(include=["kvbench", "kvbench.*"])
for top in MAPPED:
    packages += [f"kvbench.{name}" for name in [top, *(f"{top}.{sub}" for sub in find_packages(top))]]

setup(
    packages=packages,
    package_dir={f"kvbench.{top}": top for top in MAPPED},
    package_data={
        "": ["*.json", "*.cpp", "*.h", "*.md", "py.typed"],
        "kvbench.conf": ["**/*.yaml"],
        "kvbench.report": ["assets/*"],
        "kvbench.results": ["*/summary.csv"],
    },
)
