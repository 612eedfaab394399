"""Tiny multimodal checkpoints, one module for each kind."""
