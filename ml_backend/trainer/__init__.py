"""`labelloop trainer`: an agent that asks an ML backend for fine-tunings, and hands the models back."""
