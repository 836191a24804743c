"""One test file for each source file, plus end-to-end ones that run the real commands."""
