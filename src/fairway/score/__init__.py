"""The scorer that owns tokens and bytes, and its windows."""
