"""qadprep: deepfake video datasets -> tuples of one face at every video quality -> WebDataset shards."""

__version__ = "0.1.0"
