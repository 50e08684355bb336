"""What frozen blocks compute of the images, computed once and kept: keys, the store, and the pass that fills it."""
