"""The execution reward: judges SQL candidates against gold by running both. Standard library, sqlglot and apsw only."""
