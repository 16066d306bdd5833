# Writes what it read, and a verdict.
import sys

print(sys.stdin.read(), 'passed')
