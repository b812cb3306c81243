"""See why each preference pair is a pair, and say when it is not: summary, terminal and web page. No ML import."""
