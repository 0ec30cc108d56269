"""What the limits stage (``hot/limits.py``) is made of: rules, costs, header fields, tables."""
