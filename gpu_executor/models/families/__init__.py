"""One module per family of architectures: config.json to spec, tensor names to canonical names."""
