"""Each hot operation twice: a plain reference and a fast version, one signature, chosen by capability."""
