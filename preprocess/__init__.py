"""Turns what people send into what the model takes, on CPU machines: no torch here, and nothing of gpu_executor."""
