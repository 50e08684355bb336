"""Seconds of an image in each part of a trial, measured on this machine."""
