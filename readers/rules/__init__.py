"""Rules of others: Tracee's signatures, Fibratus's rules, Sigma."""
