"""The model's own dtype: nothing is lost."""

from kvbench.methods.base import Native
from kvbench.methods.registry import register

register("native")(Native)
