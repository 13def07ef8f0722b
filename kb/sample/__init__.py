"""A small real sample of Wikidata in its own RDF shape: two nights. README.md tells how to extend it."""
