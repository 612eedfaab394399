"""What turns media into rows of a decoder's embeddings; one module for each kind of tower."""
