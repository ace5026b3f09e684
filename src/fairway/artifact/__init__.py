"""The container, the byte ledger and the one-file program."""
