"""From the numbers of runs to tables, figures and a page."""
