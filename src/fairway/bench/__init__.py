"""How fast a recipe trains on this machine, by phase and by part."""
