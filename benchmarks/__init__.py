"""How fast the library is, and against what: `make bench`. Ratios of two things measured in one run, never limits."""
