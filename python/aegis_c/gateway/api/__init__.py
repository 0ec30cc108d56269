"""The routes beside the hot path, by domain."""
