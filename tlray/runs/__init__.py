"""A run folder: what lies where, what proves that it is whole, and which state its trials are in."""
