"""One rule a file: what was seen goes in, findings come out."""
