"""Cheetah (arXiv 2308.04152): does a second look that the language model guides help?"""
