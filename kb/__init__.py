"""The knowledge side: Wikidata statements, their meaning, and how they differ from what the model holds."""
