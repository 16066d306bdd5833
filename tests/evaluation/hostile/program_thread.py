# Ends its first thread and lives on in others, its output open.
import sys
import threading
import time

threading.Thread(target=time.sleep, args=(86399,)).start()
print(0)
sys.exit(0)
