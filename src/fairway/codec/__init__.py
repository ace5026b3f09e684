"""General compressors behind one call."""
