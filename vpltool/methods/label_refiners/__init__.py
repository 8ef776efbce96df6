"""Methods of the kind `label_refiners`, a file each."""
