"""Loss terms: modules whose forward returns one unweighted scalar."""
