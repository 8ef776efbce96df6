"""One file a command, named after it. They import nothing heavy: `--help` is instant."""
