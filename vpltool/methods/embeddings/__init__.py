"""Methods of the kind `embeddings`, a file each."""
