"""Reports: what run directories hold, as a page, tables and CSV."""
