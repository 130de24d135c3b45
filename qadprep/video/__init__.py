"""Video files: probe, decode at indices, encode the qualities, prove that two files show the same instants."""
