"""The mathematics, from tensors to tensors: no artifact paths, no command line, no printing."""
