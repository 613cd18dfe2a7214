"""Reports: plots and HTML pages of run folders."""
