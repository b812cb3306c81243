"""What the inspection server shows: templates, style, script, and the drawing of SQL, schemas and plots."""
