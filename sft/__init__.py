"""Stage one: embedded model and data, the audit, the prompt and supervised fine-tuning."""
