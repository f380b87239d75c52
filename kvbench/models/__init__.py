"""Models: loading, fingerprints, the embedded model, sentence boundaries, scales of an FP8 cache."""
