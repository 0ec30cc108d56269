"""Golden files; published.json holds vectors of others, with their sources."""
