"""SIMA (arXiv 2405.15973): does a model that judges its own answers hallucinate less?"""
