"""Tables of rules, as TSV."""
