"""Cases of the equivalence tests, by family."""
