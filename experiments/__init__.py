"""One short script per result; each has a `cpu` and a `paper` preset."""
