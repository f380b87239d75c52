"""The model's own dtype: lossless."""

from kvbench.methods.base import Native
from kvbench.methods.registry import register

register("native")(Native)
