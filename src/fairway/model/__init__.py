"""The spine and the families of techniques."""
