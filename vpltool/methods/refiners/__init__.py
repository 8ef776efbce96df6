"""Methods of the kind `refiners`, a file each."""
