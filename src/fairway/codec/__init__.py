"""Coders of quantised weights: our own table rANS, and general compressors behind the same calls."""
