"""A second implementation of the log's formats: slow, clear, from the specifications.

Nothing here imports the product, and nothing of the product imports this. Tests hold the two
against each other, so that one misreading of a specification cannot hide in both.
"""
