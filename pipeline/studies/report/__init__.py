"""The report of a noise study: statistics over patients and seeds, figures, galleries and one page that holds them."""
