"""Methods of the kind `sources`, a file each."""
