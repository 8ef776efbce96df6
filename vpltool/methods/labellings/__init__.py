"""Methods of the kind `labellings`, a file each."""
