# Ends with success, and has written nothing.
import os

os._exit(0)
