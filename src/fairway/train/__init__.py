"""The loop, the clock's use, ranks and checkpoints."""
