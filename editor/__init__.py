"""The editor: MEMIT and what it needs, on any causal language model."""
