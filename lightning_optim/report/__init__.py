"""The evidence: tables, plots and a page."""
