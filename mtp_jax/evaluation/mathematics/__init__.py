"""What scoring mathematics needs: answers found in text, brought to one form, and compared."""
