"""Tables of readers, as TSV."""
