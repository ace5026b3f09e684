"""Fairway: trains, quantises, packs, scores and referees language models under a byte and a time budget."""
