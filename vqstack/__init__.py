"""Discrete hierarchies of codes: stacked vector-quantized autoencoders whose numbers are all likelihoods."""

__version__ = "0.1.0"
