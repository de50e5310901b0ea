"""CaMML (arXiv 2401.03149): do retrieved examples help as a fixed number of context tokens?"""
