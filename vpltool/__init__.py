"""vpltool: photos with image-level tags in, a trained segmenter out."""

__version__ = "0.1.0"
