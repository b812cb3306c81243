"""The parts of report.html: template, style, script, plots, and how numbers and untrusted text are written."""
