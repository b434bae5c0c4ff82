"""Memory families: within an episode, what pays was seen earlier. `episodes.py` says what a task is here."""
