"""The stages of the hot path, in the order in which a request meets them."""
