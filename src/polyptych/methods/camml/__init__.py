"""CaMML: retrieved examples become a fixed number of context tokens."""
