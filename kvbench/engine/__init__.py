"""The inference engine: one dense prefill per prompt, then compression and decoding of all its cells together."""
