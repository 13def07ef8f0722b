"""The ledger and the checkpoint files: what the model holds, and why."""
