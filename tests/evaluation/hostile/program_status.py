# Writes the right form and ends with a failure.
print(23770)
raise SystemExit(3)
