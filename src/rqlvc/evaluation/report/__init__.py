"""The page of an evaluation or of one encode: one HTML file that needs no network."""
