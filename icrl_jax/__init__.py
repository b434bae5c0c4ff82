"""In-context reinforcement learning in one compiled JAX program."""
