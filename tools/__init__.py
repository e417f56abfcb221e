"""What builds and checks the book: notebooks, ledger, pages."""
