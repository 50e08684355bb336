"""Batch prediction: millions of images through an export, as Parquet files that become visible whole, part by part.

parts.py        the images as a list on local disk, cut into parts whose names say what is in them
output.py       the folder that the predictions are written to
classify.py     one part through the model; the only file here that needs torch
"""
