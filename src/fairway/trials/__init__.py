"""Many runs: seeds, job arrays, sweeps, and where their metrics go."""
