"""What runs measured: comparison, the folder to submit, the report, the list of runs."""
