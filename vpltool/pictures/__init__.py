"""Pictures: maps and labels over photos, and points in a plane."""
