"""Labelled images: what there is (manifest), how bytes become pixels (decode, transforms), in which order (loader)."""
