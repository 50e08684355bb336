"""tlray: find, prove and export the pre-trained backbone that works best on your images."""

__version__ = "0.1.0"
