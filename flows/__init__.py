"""The flows: the only package that knows the others; it draws the arrows of docs/architecture.md."""
