"""Update rules, banks, schedules and averages."""
