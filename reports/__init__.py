"""Reads run folders: plots and the page of a run."""
