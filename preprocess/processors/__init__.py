"""What each multimodal architecture makes of media and of prompts that hold them; registry.py finds it."""
