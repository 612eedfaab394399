"""Media of prompts: fetched, checked, decoded."""
