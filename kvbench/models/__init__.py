"""Loading models, the attention hook and prefill snapshots."""
