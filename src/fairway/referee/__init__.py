"""The referee: rules as data, proofs that run, and a reviewer's desk for other people's folders."""
