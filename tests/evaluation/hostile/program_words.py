# Writes as many words as its limit lets it.
import sys

sys.stdout.write("ab " * (1 << 20))
