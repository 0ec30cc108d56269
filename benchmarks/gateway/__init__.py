"""One governed call, end to end: `python -m benchmarks.gateway` (method: benchmarks/README.md)."""
