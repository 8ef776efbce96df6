"""Methods of the kind `proposers`, a file each."""
