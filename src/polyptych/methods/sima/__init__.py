"""SIMA: a model improves itself on its own answers, judged by itself."""
